"""The training loop. It is handed a model, data and a task, and knows none of them."""
