"""One table per family of published networks: how torch calls our layers.

A rule pairs the two names of a layer. In a name `{x}` is a whole number, the same on both sides,
and `{x+1}` is one more; so a table serves both directions. What a layer's arrays are called, and
how their axes lie, follows from its kind: CONV, TRANSPOSED or NORM.

A new family is a new line of FAMILIES.
"""

import re
from functools import cache
from typing import NamedTuple


class Leaf(NamedTuple):
    """One array of a layer."""

    torch: str
    ours: str | None  # collection/name; None where we have no such thing
    axes: tuple[int, ...] = (0,)  # where our axes are among torch's
    always: bool = False  # torch has it even where we have not: zeros


BIAS = Leaf("bias", "params/bias")
CONV = (Leaf("weight", "params/kernel", (2, 3, 1, 0)), BIAS)  # [F C kh kw] -> [kh kw C F]
BIASED = (CONV[0], BIAS._replace(always=True))  # even before a batch norm
TRANSPOSED = (Leaf("weight", "params/kernel", (2, 3, 0, 1)), BIAS)  # [C F kh kw] -> [kh kw C F]
NORM = (
    Leaf("weight", "params/scale"),
    BIAS,
    Leaf("running_mean", "batch_stats/mean"),
    Leaf("running_var", "batch_stats/var"),
    Leaf("num_batches_tracked", None, (), always=True),
)


class Rule(NamedTuple):
    torch: str
    ours: str | None  # None for a layer that our networks lack
    layer: tuple[Leaf, ...] = CONV
    window: int = 0  # of a dense layer [F C·window²], which is a convolution here; 0 for others
    old: bool = False  # a name that older files have: it is read, not written


def translate(name: str, source: str, target: str) -> str | None:
    """`name`, which has the form `source`, in the form `target`; None if it has another form.

    translate("layer2.0", "layer{s}.{b}", "stage{s}_block{b+1}") is "stage2_block1".
    """
    if (match := _pattern(source).fullmatch(name)) is None:
        return None
    for field, number in match.groupdict().items():
        base = int(number) - (f"{{{field}+1}}" in source)
        target = target.replace(f"{{{field}}}", str(base)).replace(f"{{{field}+1}}", str(base + 1))
    return target


@cache
def _pattern(form: str) -> re.Pattern:
    pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>0|[1-9]\\d*)", re.escape(form))
    return re.compile(re.sub(r"\\{(\w)\\\+1\\}", r"(?P<\1>[1-9]\\d*)", pattern), re.ASCII)


def conv_norm(torch: str, ours: str, conv: str = ".0", norm: str = ".1") -> list[Rule]:
    """A convolution and its norm: torch's name of the pair, ours, torch's names within."""
    return [Rule(torch + conv, ours + "/conv"), Rule(torch + norm, ours + "/norm", NORM)]


def separable(torch: str, ours: str, names: tuple[str, ...] = (".0.0", ".0.1", ".1")) -> list[Rule]:
    parts = zip(names, ("/depthwise", "/pointwise", "/norm"), (CONV, CONV, NORM), strict=True)
    return [Rule(torch + name, ours + part, layer) for name, part, layer in parts]


def dense(**layers: tuple[str, int]) -> list[Rule]:
    """The layers of a head, each with torch's name and its window."""
    return [Rule(torch, f"head/{ours}", CONV, window) for ours, (torch, window) in layers.items()]


def alexnet() -> list[Rule]:
    indices = enumerate((0, 3, 6, 8, 10), start=1)
    convs = [Rule(f"features.{index}", f"backbone/conv{i}") for i, index in indices]
    head = dense(fc6=("classifier.1", 6), fc7=("classifier.4", 1), classifier=("classifier.6", 1))
    return convs + head


def vgg16(batch_norm: bool) -> list[Rule]:
    rules, index = [], 0
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, count + 1):
            ours = f"backbone/stage{stage}_conv{i}"
            rules.append(Rule(f"features.{index}", f"{ours}/conv", BIASED))
            if batch_norm:
                rules.append(Rule(f"features.{index + 1}", f"{ours}/norm", NORM))
            index += 2 + batch_norm  # convolution, norm, activation
        index += 1  # pooling
    head = dense(fc6=("classifier.0", 7), fc7=("classifier.3", 1), classifier=("classifier.6", 1))
    return rules + head


def googlenet() -> list[Rule]:
    layers = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}
    branches = {"1": "1", "2.0": "2_reduce", "2.1": "2", "3.0": "3_reduce", "3.1": "3", "4.1": "4"}
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for torch, ours in branches.items():
            layers[f"inception{block}.branch{torch}"] = f"inception{block}/branch{ours}"
    rules = []
    for torch, ours in layers.items():
        rules += conv_norm(torch, f"backbone/{ours}", ".conv", ".bn")
    auxiliary = [Rule("aux{i}.conv.conv", None), Rule("aux{i}.conv.bn", None, NORM)]
    auxiliary += [Rule("aux{i}.fc{j}", None, CONV, 1)]  # for training only
    return rules + dense(classifier=("fc", 1)) + auxiliary


def resnet(prefix: str = "") -> list[Rule]:
    block, ours = prefix + "layer{s}.{b}", "backbone/stage{s}_block{b+1}"
    return [
        *conv_norm(prefix, "backbone/stem", "conv1", "bn1"),
        *conv_norm(block, ours + "/conv{i}", ".conv{i}", ".bn{i}"),
        *conv_norm(block + ".downsample", ours + "/shortcut"),
    ]


def mobilenet_v3_large(prefix: str) -> list[Rule]:
    rules = conv_norm(f"{prefix}.0", "backbone/stem")
    for i in range(1, 16):
        layers = ["expand"] * (i > 1) + ["depthwise"]
        layers += ["squeeze"] * (i in (4, 5, 6, 11, 12, 13, 14, 15)) + ["project"]
        for j, layer in enumerate(layers):
            torch, ours = f"{prefix}.{i}.block.{j}", f"backbone/block{i}"
            if layer == "squeeze":
                rules += [Rule(f"{torch}.fc1", f"{ours}/squeeze")]
                rules += [Rule(f"{torch}.fc2", f"{ours}/excite")]
            else:
                rules += conv_norm(torch, f"{ours}/{layer}")
    return rules + conv_norm(f"{prefix}.16", "backbone/top")


def aspp(torch: str, branch=conv_norm) -> list[Rule]:
    """Atrous spatial pyramid pooling; branch: the kind of those that are dilated."""
    return [
        *conv_norm(f"{torch}.convs.0", "aspp/branch1"),
        *(rule for n in (1, 2, 3) for rule in branch(f"{torch}.convs.{n}", f"aspp/branch{n + 1}")),
        *conv_norm(f"{torch}.convs.4", "aspp/pooling", ".1", ".2"),
        *conv_norm(f"{torch}.project", "aspp/project"),
    ]


_AUXILIARY = [
    *conv_norm("aux_classifier", "aux_head/conv"),
    Rule("aux_classifier.4", "aux_head/classifier"),
]
_FCN = [
    *conv_norm("classifier", "head/conv"),
    Rule("classifier.4", "head/classifier"),
    *_AUXILIARY,
]
_DEEPLAB_V3 = [
    *aspp("classifier.0"),
    *conv_norm("classifier", "head/conv", ".1", ".2"),
    Rule("classifier.4", "head/classifier"),
    *_AUXILIARY,
]
_LRASPP = [
    *conv_norm("classifier.cbr", "head/conv"),
    Rule("classifier.scale.1", "head/scale"),
    Rule("classifier.low_classifier", "head/low_classifier"),
    Rule("classifier.high_classifier", "head/high_classifier"),
]
_SMP_UNET = [
    *conv_norm("decoder.blocks.{i}.conv{j}", "up{i+1}/conv{j}"),
    Rule("segmentation_head.0", "classifier"),
]
_SMP_DEEPLAB_V3_PLUS = [
    *aspp("decoder.aspp.0", separable),
    *separable("decoder.aspp", "refine", (".1.0", ".1.1", ".2")),
    *conv_norm("decoder.block1", "low_level"),
    *separable("decoder.block2", "fuse"),
    Rule("segmentation_head.0", "classifier"),
]


def rcnn() -> list[Rule]:
    """Faster, Mask and Keypoint R-CNN, after the backbone; at last the names of older files."""
    fpn = ("inner_blocks", "lateral"), ("layer_blocks", "output")
    return [
        *(
            rule
            for torch, ours in fpn
            for rule in conv_norm(f"backbone.fpn.{torch}.{{i}}", f"fpn/{ours}{{i+1}}")
        ),
        Rule("rpn.head.conv.{i}.0", "rpn/conv{i+1}"),
        Rule("rpn.head.cls_logits", "rpn/objectness"),
        Rule("rpn.head.bbox_pred", "rpn/deltas"),
        Rule("roi_heads.box_head.fc6", "box_head/fc6", CONV, 7),
        Rule("roi_heads.box_head.fc7", "box_head/fc7", CONV, 1),
        Rule("roi_heads.box_head.5", "box_head/fc5", CONV, 7),
        *conv_norm("roi_heads.box_head.{i}", "box_head/conv{i+1}"),
        Rule("roi_heads.box_predictor.cls_score", "box_predictor/logits", CONV, 1),
        Rule("roi_heads.box_predictor.bbox_pred", "box_predictor/deltas", CONV, 1),
        *conv_norm("roi_heads.mask_head.{i}", "mask_head/conv{i+1}"),
        Rule("roi_heads.mask_predictor.conv5_mask", "mask_head/upsample", TRANSPOSED),
        Rule("roi_heads.mask_predictor.mask_fcn_logits", "mask_head/logits"),
        *(
            Rule(f"roi_heads.keypoint_head.{2 * i}", f"keypoint_head/conv{i + 1}/conv")
            for i in range(8)
        ),
        Rule("roi_heads.keypoint_predictor.kps_score_lowres", "keypoint_head/upsample", TRANSPOSED),
        *(
            Rule(f"backbone.fpn.{torch}.{{i}}", f"fpn/{ours}{{i+1}}/conv", old=True)
            for torch, ours in fpn
        ),
        Rule("rpn.head.conv", "rpn/conv1", old=True),
        Rule("roi_heads.mask_head.mask_fcn{i}", "mask_head/conv{i}/conv", old=True),
    ]


FAMILIES: dict[str, tuple[Rule, ...]] = {
    "alexnet": (*alexnet(),),
    "vgg16": (*vgg16(batch_norm=False),),
    "vgg16_bn": (*vgg16(batch_norm=True),),
    "googlenet": (*googlenet(),),
    "resnet": (*resnet(), *dense(classifier=("fc", 1))),
    "mobilenet_v3_large": (
        *mobilenet_v3_large("features"),
        *dense(hidden=("classifier.0", 1), classifier=("classifier.3", 1)),
    ),
    "fcn_resnet": (*resnet("backbone."), *_FCN),
    "deeplabv3_resnet": (*resnet("backbone."), *_DEEPLAB_V3),
    "deeplabv3_mobilenet_v3_large": (*mobilenet_v3_large("backbone"), *_DEEPLAB_V3),
    "lraspp_mobilenet_v3_large": (*mobilenet_v3_large("backbone"), *_LRASPP),
    "rcnn_resnet_fpn": (*resnet("backbone.body."), *rcnn()),
    "rcnn_mobilenet_v3_large_fpn": (*mobilenet_v3_large("backbone.body"), *rcnn()),
    "smp_unet_resnet": (*resnet("encoder."), *_SMP_UNET),
    "smp_deeplabv3plus_resnet": (*resnet("encoder."), *_SMP_DEEPLAB_V3_PLUS),
}
