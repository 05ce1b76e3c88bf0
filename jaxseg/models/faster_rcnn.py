"""Faster R-CNN (Ren et al. 2015): a network proposes regions, a second one looks at each of them.

On a feature pyramid (Lin et al. 2017), as torchvision has it, or with `pyramid=False` on the one
map of stride 16 of the paper: of VGG16, or of a ResNet, whose last stage is then the head of the
regions ("C4": He et al. 2016, appendix A). Mask and Keypoint R-CNN add heads: `RegionHead`.

    image        [B H W 3]  pictures, 0 (or the mean colour) where there is only padding
    image_size   [B 2]      (height, width) of the picture inside of it
    maps         L of [B h w C], finest first
    objectness   L of [B A], deltas L of [B A 4], anchors L of [A 4]: see `nn.rpn`
    regions      [B P …]: see `nn.roi_heads`

All shapes are static: whatever the number of objects, the same program runs. Published weights:
v1 has norm="frozen", with norm_epsilon=0 on ResNet-50 and 1e-5 on MobileNetV3; v2 is `**V2`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from jaxseg.backbones.mobilenet import MobileNetV3Large
from jaxseg.backbones.resnet import BLOCKS, ResNet
from jaxseg.backbones.vgg import VGG16
from jaxseg.nn.detections import Detections, named
from jaxseg.nn.fpn import FPN
from jaxseg.nn.init import make_init
from jaxseg.nn.norm import NormKind, make_norm, with_options
from jaxseg.nn.options import expect, known_settings
from jaxseg.nn.roi_heads import (
    BoxHead,
    BoxPredictor,
    Regions,
    detect,
    sample_regions,
    where_chosen,
)
from jaxseg.nn.rpn import (
    Proposals,
    RPNHead,
    Targets,
    neighbourhoods,
    propose,
    sample_targets,
)
from jaxseg.ops.anchors import COARSEST, anchors_of_maps, sizes_per_level
from jaxseg.ops.padding import picture_size, without_padding
from jaxseg.ops.roi import multiscale_roi_align, roi_pool
from jaxseg.ops.truth import truth_of
from jaxseg.types import FLOAT32, Array, Batch, Mean, Model, Precision, Variables

# Backbones, and which of their maps go into the pyramid. Of MobileNetV3, as published, these are
# the first and the last one of stride 32.
BACKBONES = {
    **{f"resnet{depth}": (partial(ResNet, depth), (4, 8, 16, 32)) for depth in BLOCKS},
    "vgg16": (partial(VGG16, pooled=False), (4, 8, 16)),
    "mobilenet_v3_large": (
        partial(MobileNetV3Large, maps={"first": 13, "last": 16}),
        ("first", "last"),
    ),
}

# The improved variant of Li et al. 2021, "Benchmarking Detection Transfer Learning with Vision
# Transformers", section 3: torchvision's v2.
V2 = MappingProxyType(
    dict(norm="batch", neck_norm="batch", rpn_convolutions=2, box_convolutions=4, box_dense=(1024,))
)


class RegionHead(NamedTuple):
    """One more head on the regions of interest, with its loss and its decoding, of one picture."""

    name: str
    # (norm, precision) -> module, (x [N n n C], labels [N], mask [N] or None) -> outputs
    network: Callable[..., nn.Module]
    size: int  # n, bins of a region
    # (outputs [P …], regions, batch row) -> Mean, over the regions that are positive
    loss: Callable[[Array, Regions, Batch], Mean]
    # (outputs [D …], detections) -> named predictions [D …]
    decode: Callable[[Array, Detections], dict[str, Array]]


class Settings(NamedTuple):
    """What is not learned. Pairs are for training, and for prediction."""

    anchor_sizes: Sequence[Sequence[int]] = ((32,), (64,), (128,), (256,), (512,))  # a level each
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    rpn_iou: tuple[float, float] = (0.7, 0.3)  # of positive, of negative anchors
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    proposals_per_level: tuple[int, int] = (2000, 1000)  # before suppression
    proposals: tuple[int, int] = (2000, 1000)
    proposal_iou: float = 0.7  # above which the lower one is suppressed
    min_proposal_score: float = 0.0
    region_iou: float = 0.5  # of a positive region
    region_samples: int = 512
    region_positive_fraction: float = 0.25
    min_score: float = 0.05
    detection_iou: float = 0.5
    detections: int = 100
    sampling: str = "random"  # or "first": the first ones, to compare with other implementations


class FasterRCNN(nn.Module):
    """The network, in parts; `training` says which mode it is in."""

    num_classes: int  # with the background, class 0
    backbone: str = "resnet50"
    width: int = 64  # of the backbone's first stage
    pyramid: bool = True
    levels: tuple[int | str, ...] | None = None  # the backbone's maps in it; None: as published
    features: int = 256  # of the pyramid
    anchors_per_place: int = 3
    rpn_convolutions: int = 1
    box_convolutions: int = 0
    box_dense: tuple[int, ...] = (1024, 1024)
    box_dropout: float = 0.0
    pooling: str = "align"  # or "max", RoI-Pool, on a single map
    aligned: bool = False  # True: RoI-Align with the centres of pixels at +0.5, unlike published
    heads: tuple[RegionHead, ...] = ()
    norm: NormKind = "frozen"  # of the backbone
    norm_epsilon: float | None = None  # None: the backbone's own
    neck_norm: NormKind = "none"  # of pyramid and heads
    axis_name: str | None = None
    precision: Precision = FLOAT32
    training: bool = False

    def setup(self):
        norms = partial(
            make_norm, train=self.training, axis_name=self.axis_name, precision=self.precision
        )
        norm = with_options(norms(self.norm), epsilon=self.norm_epsilon)
        neck_norm = norms(self.neck_norm)
        make, published = BACKBONES[self.backbone]
        self.inputs = self.levels or published
        shared = dict(precision=self.precision)
        self.trunk: Any = make(width=self.width, norm=norm, name="backbone", **shared)
        if self.pyramid:
            self.fpn = FPN(self.features, norm=neck_norm, **shared)
        self.rpn = RPNHead(self.anchors_per_place, self.rpn_convolutions, **shared)
        self.box_head = BoxHead(
            self.box_dense, self.box_convolutions, self.box_dropout, neck_norm, **shared
        )
        self.box_predictor = BoxPredictor(self.num_classes, **shared)
        for head in self.heads:
            setattr(self, f"{head.name}_head", head.network(norm=neck_norm, **shared))

    def __call__(self, image: Float[Array, "B H W 3"]) -> None:
        """Runs every part once, so that all have their parameters."""
        maps = self.extract(image)
        self.propose(maps)
        corner = jnp.tile(jnp.array([[[0.0, 0.0, 16.0, 16.0]]]), (len(image), 1, 1))
        self.classify(maps, image, corner)
        for head in self.heads:
            self.look(head, maps, image, corner, jnp.zeros(corner.shape[:2], jnp.int32))

    def extract(self, image: Float[Array, "B H W 3"]) -> list[Array]:
        """The maps on which proposals are made. Of a pyramid the coarsest, every other pixel of the
        one before, is for large proposals alone."""
        if not self.pyramid:
            last = {"last": 3} if self.has_stage_head else {}
            return [self.trunk(image, **last)[16]]
        features = self.trunk(image)
        maps = self.fpn([features[level] for level in self.inputs])
        return [*maps, maps[-1][:, ::2, ::2]]

    def propose(self, maps: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """(objectness, deltas) of each map."""
        found = [self.rpn(x) for x in maps]
        return [objectness for objectness, _ in found], [deltas for _, deltas in found]

    def propose_at(
        self, maps: Sequence[Array], anchors: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S"], Float[Array, "B S 4"]]:
        """(objectness, deltas) of a few anchors of all maps, and nothing computed for others: a
        gradient then costs little, where that of `propose` is a sixth of a training step."""
        places, own = jnp.divmod(anchors, self.anchors_per_place)
        look = partial(neighbourhoods, reach=self.rpn_convolutions)
        around = jax.vmap(look)(list(maps), places)
        objectness, deltas = self.rpn(*(x.reshape(-1, *x.shape[2:]) for x in around))
        rows, own = jnp.arange(own.size), own.reshape(-1)
        return (
            objectness[rows, own].reshape(anchors.shape),
            deltas[rows, own].reshape(*anchors.shape, 4),
        )

    def pool(
        self, maps: Sequence[Array], image: Array, boxes: Float[Array, "B P 4"], size: int
    ) -> Float[Array, "B*P n n C"]:
        """Features of regions, from the map that fits each."""
        maps = maps[:-1] if self.pyramid else maps
        strides = strides_of(image.shape[1:3], maps)
        if self.pooling == "align":
            options = dict(strides=strides, aligned=self.aligned)
            pool = partial(multiscale_roi_align, size=(size, size), **options)
        else:
            pool = lambda maps, boxes: roi_pool(maps[0], boxes, (size, size), scale=1 / strides[0])  # noqa: E731
        regions = jax.vmap(pool)(tuple(maps), boxes)
        return regions.reshape(-1, *regions.shape[2:])

    def classify(
        self,
        maps: Sequence[Array],
        image: Array,
        boxes: Float[Array, "B P 4"],
        mask: Array | None = None,
    ) -> tuple[Float[Array, "B P K"], Float[Array, "B P K 4"]]:
        """(class logits, box deltas) of regions; mask [B P]: those that count in statistics."""
        mask = None if mask is None else mask.reshape(-1)
        if self.has_stage_head:
            x = self.trunk(self.pool(maps, image, boxes, 14), first=4)[32].mean((1, 2))
        else:
            x = self.box_head(self.pool(maps, image, boxes, 7), mask, train=self.training)
        logits, deltas = self.box_predictor(x)
        batch = boxes.shape[:2]
        return logits.reshape(*batch, -1), deltas.reshape(*batch, -1, 4)

    def look(
        self,
        head: RegionHead,
        maps: Sequence[Array],
        image: Array,
        boxes: Float[Array, "B P 4"],
        labels: Int[Array, "B P"],
        mask: Array | None = None,
    ) -> Float[Array, "B P *_"]:
        """What one more head says of regions of these classes; mask [B P]: of these alone, if there
        is no norm whose statistics need them all at once."""
        inputs = self.pool(maps, image, boxes, head.size), labels.reshape(-1)
        network = getattr(self, f"{head.name}_head")
        if mask is None:
            outputs = network(*inputs)
        elif self.neck_norm == "batch":
            outputs = network(*inputs, mask.reshape(-1))
        else:
            module, variables = network.unbind()
            outputs = where_chosen(partial(module.apply, variables), inputs, mask.reshape(-1))
        return outputs.reshape(*boxes.shape[:2], *outputs.shape[1:])

    @property
    def has_stage_head(self) -> bool:
        return not self.pyramid and self.backbone.startswith("resnet")


# ---- training


def losses(network: FasterRCNN, settings: Settings, batch: Batch, key: Array) -> dict[str, Mean]:
    """The losses of approximate joint training (section 3.2), each over the whole batch:

    objectness  binary cross-entropy of the sampled anchors
    rpn_box     smooth L1 of positive anchors' deltas, over all sampled anchors (eq. 1)
    class       cross-entropy of the sampled regions
    box         smooth L1 of positive regions' deltas, over all sampled regions
    and those of further heads
    """
    image, _ = without_padding(batch["image"], multiple=COARSEST)
    truth = truth_of(batch)
    maps = network.extract(image)
    objectness, deltas = network.propose(maps)
    anchors = anchors_of(image, maps, settings)
    proposals = propose_all(objectness, deltas, anchors, batch["image_size"], settings, 0)
    keys = (None, None)
    if settings.sampling == "random":
        keys = jax.random.split(key, (2, len(image)))

    sample = partial(
        sample_targets,
        jnp.concatenate(anchors),
        high=settings.rpn_iou[0],
        low=settings.rpn_iou[1],
        num_samples=settings.rpn_samples,
        positive_fraction=settings.rpn_positive_fraction,
    )
    valid = batch["valid"][:, None]
    targets = jax.vmap(sample)(truth, keys[0])
    targets = targets._replace(mask=targets.mask & valid)
    sample = partial(
        sample_regions,
        iou_threshold=settings.region_iou,
        num_samples=settings.region_samples,
        positive_fraction=settings.region_positive_fraction,
    )
    regions = jax.vmap(sample)(proposals, truth, keys[1])
    regions = regions._replace(mask=regions.mask & valid)
    logits, moves = network.classify(maps, image, regions.boxes, regions.mask)
    found = rpn_losses(*network.propose_at(maps, targets.anchors), targets)
    found |= box_losses(logits, moves, regions)

    first = int(settings.region_samples * settings.region_positive_fraction)
    shown = jax.tree.map(lambda x: x[:, :first], regions)  # the positive ones are among these
    for head in network.heads:
        outputs = network.look(head, maps, image, shown.boxes, shown.labels, shown.positive)
        each = jax.vmap(head.loss)(outputs, shown, batch)
        found[head.name] = Mean(each.total.sum(), each.weight.sum())
    return found


def rpn_losses(
    objectness: Float[Array, "B S"], deltas: Float[Array, "B S 4"], targets: Targets
) -> dict[str, Mean]:
    """`objectness` and `rpn_box` of the sampled anchors."""
    entropy = optax.sigmoid_binary_cross_entropy(objectness, targets.positive.astype(jnp.float32))
    count = targets.mask.sum().astype(jnp.float32)
    return {
        "objectness": Mean((entropy * targets.mask).sum(), count),
        "rpn_box": Mean((smooth_l1(deltas - targets.deltas) * targets.positive).sum(), count),
    }


def box_losses(
    logits: Float[Array, "B P K"], deltas: Float[Array, "B P K 4"], regions: Regions
) -> dict[str, Mean]:
    """`class` and `box`."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, regions.labels)
    deltas = jnp.take_along_axis(deltas, regions.labels[:, :, None, None], 2)[:, :, 0]
    count = regions.mask.sum().astype(jnp.float32)
    return {
        "class": Mean((entropy * regions.mask).sum(), count),
        "box": Mean((smooth_l1(deltas - regions.deltas) * regions.positive).sum(), count),
    }


def smooth_l1(error: Float[Array, "*B 4"], beta: float = 1 / 9) -> Float[Array, "*B"]:
    """Σ of error² / 2β up to β, |error| − β/2 beyond (Girshick 2015, eq. 3, where β is 1)."""
    return optax.huber_loss(error, delta=beta).sum(-1) / beta


# ---- prediction


def predictions(
    network: FasterRCNN, settings: Settings, image: Array, image_size: Int[Array, "B 2"] | None
) -> dict[str, Array]:
    """Detections, and the proposals that they came from; see `types`."""
    image, inside = without_padding(image, multiple=COARSEST)
    image_size = picture_size(inside) if image_size is None else image_size
    maps = network.extract(image)
    anchors = anchors_of(image, maps, settings)
    proposals = propose_all(*network.propose(maps), anchors, image_size, settings, 1)
    logits, moves = network.classify(maps, image, proposals.boxes)
    decide = partial(
        detect,
        min_score=settings.min_score,
        iou_threshold=settings.detection_iou,
        most=settings.detections,
    )
    found = jax.vmap(decide)(logits, moves, proposals, image_size)
    told = named(found) | {
        "proposals": proposals.boxes,
        "proposal_scores": proposals.scores,
        "proposal_mask": proposals.mask,
    }
    for head in network.heads:
        outputs = network.look(head, maps, image, found.boxes, found.labels)
        told |= jax.vmap(head.decode)(outputs, found)
    return told


# ---- both


def strides_of(size: Sequence[int], maps: Sequence[Array]) -> tuple[int, ...]:
    """Of maps of an image of (height, width), to the next power of two."""
    return tuple(2 ** round(np.log2(size[0] / x.shape[1])) for x in maps)


def anchors_of(image: Array, maps: Sequence[Array], settings: Settings) -> list[Array]:
    """The anchors of each map, constants."""
    return anchors_of_maps(image, maps, settings.anchor_sizes, settings.aspect_ratios)


def propose_all(
    objectness: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[Array],
    image_size: Array,
    settings: Settings,
    mode: int,
) -> Proposals:
    """The proposals of every picture of a batch; mode: 0 in training, 1 in prediction."""
    one = partial(
        propose,
        most_per_level=settings.proposals_per_level[mode],
        most=settings.proposals[mode],
        iou_threshold=settings.proposal_iou,
        min_score=settings.min_proposal_score,
    )
    return jax.vmap(lambda o, d, size: one(o, d, anchors, size))(
        list(objectness), list(deltas), image_size
    )


def build(
    num_classes: int,
    *,
    heads: tuple[RegionHead, ...] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
    **network: Any,
) -> Model:
    """Faster R-CNN as a `Model`; settings: fields of `Settings`, network: those of `FasterRCNN`.

    ValueError for a backbone, pooling or sampling that is none, or does not go with the others.
    """
    expect("backbone", network.get("backbone", "resnet50"), [*BACKBONES])
    pooling = ["align"] if network.get("pyramid", True) else ["align", "max"]
    expect("pooling", network.get("pooling", "align"), pooling)
    if network.get("pooling") == "max":
        expect("aligned", network.get("aligned", False), [False])
    chosen = Settings(**known_settings(Settings, settings))
    expect("settings.sampling", chosen.sampling, ["random", "first"])
    per_place = len(chosen.aspect_ratios) * sizes_per_level(chosen.anchor_sizes)
    net = FasterRCNN(num_classes, heads=heads, anchors_per_place=per_place, **network)

    def loss(variables: Variables, batch: Batch, key: Array) -> tuple[dict[str, Mean], Variables]:
        dropout, key = jax.random.split(key)
        measure = nn.apply(losses, net.clone(training=True), mutable=["batch_stats"])
        return measure(variables, chosen, batch, key, rngs={"dropout": dropout})

    def predict(
        variables: Variables,
        image: Float[Array, "B H W 3"],
        image_size: Int[Array, "B 2"] | None = None,
    ) -> dict[str, Array]:
        return nn.apply(predictions, net)(variables, chosen, image, image_size)

    return Model(make_init(net, 64), loss, predict)
