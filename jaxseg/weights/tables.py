"""One table per family of published networks: how torch calls our layers.

A rule pairs the two names of a layer. In a name `{x}` is a whole number, the same on both sides,
and `{x+1}` is one more; so a table serves both directions. What a layer's arrays are called, and
how their axes lie, follows from its kind: CONV, TRANSPOSED or NORM.

A new family is a new line of FAMILIES, and of TWINS where a model of ours is one of it.
"""

import re
from collections.abc import Iterable
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
GROUP_NORM = NORM[:2]


class Rule(NamedTuple):
    torch: str
    ours: str | None  # None for a layer that our networks lack
    layer: tuple[Leaf, ...] = CONV
    window: int = 0  # of a dense layer [F C·window²], which is a convolution here; 0 for others
    old: bool = False  # a name that older files have: it is read, not written
    # Has every network of the family such a layer? A word: it has one of those with this word.
    needed: bool | str = True


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


def optional(rules: Iterable[Rule]) -> list[Rule]:
    return [rule._replace(needed=False) for rule in rules]


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
    *optional(conv_norm("aux_classifier", "aux_head/conv")),
    Rule("aux_classifier.4", "aux_head/classifier", needed=False),
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


def fpn(coarser: bool = False) -> list[Rule]:
    """A feature pyramid, with two coarser levels besides; at last the names of older files."""
    layers = [
        (f"backbone.fpn.{torch}.{{i}}", f"fpn/{ours}{{i+1}}")
        for torch, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output"))
    ]
    pairs = [conv_norm(torch, ours) for torch, ours in layers]
    return [
        *(rule for conv, norm in pairs for rule in (conv, *optional([norm]))),
        *[Rule(f"backbone.fpn.extra_blocks.p{i}", f"fpn/p{i}") for i in (6, 7) if coarser],
        *(Rule(torch, f"{ours}/conv", old=True) for torch, ours in layers),
    ]


def rcnn() -> list[Rule]:
    """Faster, Mask and Keypoint R-CNN, after the backbone; at last the names of older files."""
    masks_and_keypoints = [
        *conv_norm("roi_heads.mask_head.{i}", "mask_head/conv{i+1}"),
        Rule("roi_heads.mask_predictor.conv5_mask", "mask_head/upsample", TRANSPOSED),
        Rule("roi_heads.mask_predictor.mask_fcn_logits", "mask_head/logits"),
        *(
            Rule(f"roi_heads.keypoint_head.{2 * i}", f"keypoint_head/conv{i + 1}/conv")
            for i in range(8)
        ),
        Rule("roi_heads.keypoint_predictor.kps_score_lowres", "keypoint_head/upsample", TRANSPOSED),
    ]
    last = "the box head's last layer"  # of v1 or of v2
    return [
        *fpn(),
        Rule("rpn.head.conv.{i}.0", "rpn/conv{i+1}"),
        Rule("rpn.head.cls_logits", "rpn/objectness"),
        Rule("rpn.head.bbox_pred", "rpn/deltas"),
        Rule("roi_heads.box_head.fc6", "box_head/fc6", CONV, 7, needed=False),
        Rule("roi_heads.box_head.fc7", "box_head/fc7", CONV, 1, needed=last),
        Rule("roi_heads.box_head.5", "box_head/fc5", CONV, 7, needed=last),
        *optional(conv_norm("roi_heads.box_head.{i}", "box_head/conv{i+1}")),
        Rule("roi_heads.box_predictor.cls_score", "box_predictor/logits", CONV, 1),
        Rule("roi_heads.box_predictor.bbox_pred", "box_predictor/deltas", CONV, 1),
        *optional(masks_and_keypoints),
        Rule("rpn.head.conv", "rpn/conv1", old=True),
        Rule("roi_heads.mask_head.mask_fcn{i}", "mask_head/conv{i}/conv", old=True),
    ]


DENSE_HEADS = {"head.classification_head": "class_head", "head.regression_head": "box_head"}


def retinanet() -> list[Rule]:
    """After the backbone; at last the names of older files."""
    rules = fpn(coarser=True)
    for torch, ours in DENSE_HEADS.items():
        rules += [Rule(f"{torch}.conv.{i}.0", f"{ours}/conv{i + 1}") for i in range(4)]
        norm = Rule(f"{torch}.conv.{{i}}.1", f"{ours}/norm{{i+1}}/group", GROUP_NORM)
        rules += optional([norm])
        rules += [Rule(f"{torch}.conv.{2 * i}", f"{ours}/conv{i + 1}", old=True) for i in range(4)]
    return [
        *rules,
        Rule("head.classification_head.cls_logits", "class_head/logits"),
        Rule("head.regression_head.bbox_reg", "box_head/deltas"),
    ]


def fcos() -> list[Rule]:
    """After the backbone."""
    rules = fpn(coarser=True)
    for torch, ours in DENSE_HEADS.items():
        for i in range(8):  # as many as one likes
            conv = Rule(f"{torch}.conv.{3 * i}", f"{ours}/conv{i + 1}", BIASED)
            norm = Rule(f"{torch}.conv.{3 * i + 1}", f"{ours}/norm{i + 1}/group", GROUP_NORM)
            rules += [rule._replace(needed=i == 0) for rule in (conv, norm)]
    return [
        *rules,
        Rule("head.classification_head.cls_logits", "class_head/logits"),
        Rule("head.regression_head.bbox_reg", "box_head/deltas"),
        Rule("head.regression_head.bbox_ctrness", "box_head/centreness"),
    ]


def ssd() -> list[Rule]:
    """SSD on VGG16, whose convolutions are in two parts here."""
    trunk = [rule for rule in vgg16(batch_norm=False) if rule.torch.startswith("features.")]
    rules = [rule._replace(torch=f"backbone.{rule.torch}", layer=CONV) for rule in trunk[:10]]
    rules += [
        rule._replace(torch=f"backbone.extra.0.{2 * i + 1}", layer=CONV)
        for i, rule in enumerate(trunk[10:])
    ]
    heads = ("classification", "logits"), ("regression", "deltas")
    return [
        *rules,
        Rule("backbone", "l2_norm", (Leaf("scale_weight", "params/scale"),)),
        Rule("backbone.extra.0.7.1", "fc6/conv"),
        Rule("backbone.extra.0.7.3", "fc7/conv"),
        *(
            Rule(f"backbone.extra.{i}.{j}", f"extra{i}/{ours}/conv", needed=i < 5)
            for i in range(1, 6)  # the last one of SSD512 alone
            for j, ours in ((0, "reduce"), (2, "expand"))
        ),
        *(Rule(f"head.{a}_head.module_list.{{i}}", f"head{{i+1}}/{b}") for a, b in heads),
    ]


def ssdlite() -> list[Rule]:
    """SSDLite on MobileNetV3-Large, which is cut after the first layer of block 13."""
    moved = {"0.13.block.0": "0.13", "0.13.block.1": "1.0.1", "0.13.block.2": "1.0.2"}
    moved |= {"0.13.block.3": "1.0.3", "0.14": "1.1", "0.15": "1.2", "0.16": "1.3"}
    features = "backbone.features."
    rules = []
    for rule in mobilenet_v3_large(features + "0"):
        name = rule.torch
        for old, new in moved.items():
            name = name.replace(features + old, features + new)
        rules.append(rule._replace(torch=name))
    for j, ours in enumerate(("reduce", "depthwise", "expand")):
        rules += conv_norm(f"backbone.extra.{{i}}.{j}", f"extra{{i+1}}/{ours}")
    for torch, ours in ("classification", "logits"), ("regression", "deltas"):
        torch, ours = f"head.{torch}_head.module_list.{{i}}", f"head{{i+1}}/{ours}"
        rules += [*conv_norm(f"{torch}.0", f"{ours}_depthwise"), Rule(f"{torch}.1", ours)]
    return rules


def yolov3(tiny: bool) -> list[Rule]:
    """The convolutions by their numbers among Darknet's layers; see `weights.darknet`."""
    if tiny:  # with a pooling after each but the last
        names = {2 * i: f"backbone/conv{i + 1}" for i in range(7)}
        number, scales = 13, {32: 2, 16: 1}
    else:
        names, number, scales = {0: "backbone/stem"}, 1, {32: 6, 16: 6, 8: 6}
        for stage, count in enumerate((1, 2, 8, 8, 4), start=1):
            names[number] = f"backbone/stage{stage}_down"
            for i in range(count):  # two convolutions and a shortcut
                for j in (1, 2):
                    names[number + 3 * i + j] = f"backbone/stage{stage}_block{i + 1}/conv{j}"
            number += 1 + 3 * count
    rules = []
    for stride, count in scales.items():
        if stride < 32:  # [route], this one, [upsample], [route]
            names[number + 1] = f"head{stride}/reduce"
            number += 4
        names |= {number + i: f"head{stride}/conv{i + 1}" for i in range(count)}
        rules += [Rule(f"{number + count}.conv", f"head{stride}/predict")]
        number += count + 2  # this one, [yolo]
    for n, name in names.items():
        rules += conv_norm(str(n), name, ".conv", ".norm")
    return rules


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
    "ssd_vgg16": (*ssd(),),
    "ssdlite_mobilenet_v3_large": (*ssdlite(),),
    "retinanet_resnet_fpn": (*resnet("backbone.body."), *retinanet()),
    "fcos_resnet_fpn": (*resnet("backbone.body."), *fcos()),
    "smp_unet_resnet": (*resnet("encoder."), *_SMP_UNET),
    "smp_deeplabv3plus_resnet": (*resnet("encoder."), *_SMP_DEEPLAB_V3_PLUS),
    "yolov3": (*yolov3(tiny=False),),
    "yolov3_tiny": (*yolov3(tiny=True),),
}

# Of our models, the families that their networks can belong to. The other families are classifiers,
# and Darknet's networks.
_RCNN = ("rcnn_resnet_fpn", "rcnn_mobilenet_v3_large_fpn")
TWINS: dict[str, tuple[str, ...]] = {
    "fcn": ("fcn_resnet",),
    "deeplab": (
        "deeplabv3_resnet",
        "deeplabv3_mobilenet_v3_large",
        "smp_deeplabv3plus_resnet",
    ),
    "lraspp": ("lraspp_mobilenet_v3_large",),
    "unet": ("smp_unet_resnet",),
    "faster_rcnn": _RCNN,
    "mask_rcnn": _RCNN,
    "keypoint_rcnn": _RCNN,
    "ssd": ("ssd_vgg16", "ssdlite_mobilenet_v3_large"),
    "retinanet": ("retinanet_resnet_fpn",),
    "fcos": ("fcos_resnet_fpn",),
}
