"""Which objects of a batch are to be found, and what is no background beside them."""

import numpy as np

from jaxseg.ops.truth import in_crowd, truth_of

BATCH = {
    "boxes": np.array([[[0, 0, 8, 8], [10, 0, 20, 10], [30, 0, 40, 10], [5, 5, 5, 9]]], np.float32),
    "labels": np.array([[1, 2, 3, 1]], np.int32),
    "object_mask": np.array([[True, True, True, True]]),
    "valid": np.array([True]),
}
HALF_INSIDE = np.array([[1, 1, 3, 3], [11, 1, 13, 3], [17, 1, 23, 3], [31, 1, 33, 3]], np.float32)


def test_boxes_that_are_none_are_not_to_be_found():
    for place, value in np.ndindex(4, 3):
        boxes = BATCH["boxes"].copy()
        boxes[0, 0, place] = (np.nan, -np.inf, np.inf)[value]
        assert truth_of(BATCH | {"boxes": boxes}).mask[0].tolist() == [False, True, True, False]


def test_nobody_learns_from_crowds_and_difficult_objects():
    crowd, difficult = ([[False, True, False, False]], [[False, False, True, False]])
    for fields, found, doubted in (
        ({}, [True, True, True, False], [False] * 4),
        ({"crowd": crowd}, [True, False, True, False], [False, True, False, False]),
        ({"difficult": difficult}, [True, True, False, False], [False, False, False, True]),
        (
            {"crowd": crowd, "difficult": difficult},
            [True, False, False, False],
            [False, True, False, True],
        ),
    ):
        fields = {name: np.array(value) for name, value in fields.items()}
        truth = truth_of(BATCH | fields)
        assert truth.mask[0].tolist() == found
        one = truth._replace(**{n: x[0] for n, x in truth._asdict().items() if x is not None})
        assert in_crowd(HALF_INSIDE, one).tolist() == doubted
