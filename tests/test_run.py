import pytest
from runs import get_config

from jaxseg import run


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.image_size", (64, 64, 3), r"data\.image_size is .*expected \(height, width\)"),
        ("data.crop_size", (64, 0), r"data\.crop_size is .*expected \(height, width\)"),
        ("data.batch_size", 6, r"data\.batch_size is 6, expected a multiple of the 8 devices"),
        ("optim.accumulate", 3, r"optim\.accumulate is 3, expected a divisor"),
        ("augment.scales", (0.0, 1.0), r"augment\.scales is \(0\.0, 1\.0\)"),
        ("data.border_weights", (10.0,), r"expected \(w0, sigma\), or \(\)"),
        ("dtype", "float99", r"dtype is float99, expected one of float32"),
        ("steps", -1, r"steps is -1, expected 0 or more"),
    ],
)
def test_values_that_cannot_be_are_named(field, value, message):
    config = get_config()
    run.check_config(config)
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        run.check_config(config)


def test_modules_are_found_by_name():
    assert run.find_module("model", "unet").__name__ == "jaxseg.models.unet"
    assert run.find_module("task", "jaxseg.tasks.semantic").__name__ == "jaxseg.tasks.semantic"
    with pytest.raises(ValueError, match=r"model 'unett': no module jaxseg\.models\.unett"):
        run.find_module("model", "unett")
    with pytest.raises(ValueError, match=r"no module nobody\.knows"):
        run.find_module("model", "nobody.knows")


def test_misspelt_settings_are_refused():
    config = get_config()
    with pytest.raises(AttributeError, match='Did you mean "learning_rate"'):
        config.optim.learning_rat = 1.0
