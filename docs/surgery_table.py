"""Which networks each surgery takes: every family of torchvision, and some of timm's; writes methods/surgeries.md.

    python docs/surgery_table.py            # all families, about ten minutes
    python docs/surgery_table.py resnet18   # what comes of some, printed

Every network is changed, trained for a step in float32, saved and loaded, and exported.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import postgrad
from postgrad._compat import prepare_torchvision
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods.registry import METHODS
from postgrad.models.registry import create_model

CLASSES = 10
TORCHVISION = {
    "alexnet": 64, "vgg11": 32, "vgg11_bn": 32, "resnet18": 32, "resnet50": 32, "resnext50_32x4d": 32,
    "wide_resnet50_2": 32, "densenet121": 32, "googlenet": 64, "inception_v3": 96, "squeezenet1_1": 64,
    "mobilenet_v2": 32, "mobilenet_v3_small": 32, "shufflenet_v2_x0_5": 32, "mnasnet0_5": 32, "efficientnet_b0": 32,
    "efficientnet_v2_s": 32, "regnet_y_400mf": 32, "convnext_tiny": 32, "vit_b_16": 224, "swin_t": 32, "maxvit_t": 224,
}  # fmt: skip
"""One network of each family, and the side of the images that it is tried on."""

TIMM = {
    "resnet18": 32, "resnetv2_50": 32, "seresnet18": 32, "regnetx_002": 32, "mobilenetv3_small_050": 32,
    "efficientnet_lite0": 32, "ghostnet_050": 32, "repvgg_a0": 32, "dla34": 32, "vovnet39a": 32, "cspresnet50": 32,
    "convnext_atto": 32, "mixer_s32_224": 224, "deit_tiny_patch16_224": 224, "levit_128s": 224, "tinynet_e": 32,
}  # fmt: skip

SURGERIES: dict[str, dict[str, str]] = {"fixed_classifier": {}, "frn": {}, "mimicnorm": {}, "norm": {"kind": "group"}}
NETWORKS = {**{f"torchvision:{n}": s for n, s in TORCHVISION.items()}, **{f"timm:{n}": s for n, s in TIMM.items()}}

HEAD = """# Which networks the surgeries take

One network of each of torchvision's families, and some of timm's, each changed, trained for a step, saved, loaded and
exported by `python docs/surgery_table.py`, which wrote this page. A number is how many layers were changed; — means
that there was nothing to change, which is a warning; (1), (2), … that the surgery refused, for the reason below, and
left the network as it was.
"""


def outcome(network: str, surgery: str) -> str:
    """How many layers were changed, "—" for none, or why it was refused; anything else that goes wrong is raised."""
    model = fresh(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    apply: Callable[..., int] = METHODS[surgery].load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            changed = apply(model, optimizer=optimizer, **SURGERIES[surgery])
        except UserError as error:
            check_untouched(model, before)
            return str(error)
    if not changed:
        check_untouched(model, before)
        return "—"
    check(model, optimizer, NETWORKS[network])
    return str(changed)


def fresh(network: str) -> nn.Module:
    torch.manual_seed(0)
    plain = {"aux_logits": False, "init_weights": False} if network.endswith(("googlenet", "inception_v3")) else {}
    return create_model(network, num_classes=CLASSES, **plain)


def check_untouched(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def check(model: nn.Module, optimizer: torch.optim.Optimizer, side: int) -> None:
    """A step of training, the way through a file, and an export, all with finite numbers."""
    x = torch.randn(2, 3, side, side)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    loss = nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    model.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        logits = model(x)
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()
        names = [str(number) for number in range(CLASSES)]
        postgrad.save(model, folder, preprocess=Preprocessing(), class_names=names)
        assert torch.equal(postgrad.load(folder)(x), logits)
        exact, wide = model.double(), x.double()  # small maps of random weights make rounding large in float32
        program = torch.export.export(exact, (wide,), strict=False)
        torch.testing.assert_close(program.module()(wide), exact(wide), rtol=1e-6, atol=1e-6)


def page(outcomes: dict[str, dict[str, str]]) -> str:
    """The table, with what was refused explained below it."""
    reasons: dict[str, str] = {}
    lines = [f"| network | {' | '.join(SURGERIES)} |", f"|---|{'---:|' * len(SURGERIES)}"]
    for network, found in outcomes.items():
        cells = []
        for said in found.values():
            counted = said.isdigit() or said == "—"
            cells.append(said if counted else reasons.setdefault(said, f"({len(reasons) + 1})"))
        lines.append(f"| {network} | {' | '.join(cells)} |")
    below = [f"{mark.strip('()')}. {reason}" for reason, mark in reasons.items()]
    return "\n".join([HEAD, *lines, "", *below, ""])


def main() -> None:
    prepare_torchvision()
    chosen = sys.argv[1:]
    outcomes: dict[str, dict[str, str]] = {}
    for network in [n for n in NETWORKS if not chosen or n.partition(":")[2] in chosen]:
        outcomes[network] = {surgery: outcome(network, surgery) for surgery in SURGERIES}
        print(network, outcomes[network], file=sys.stderr, flush=True)
    if chosen:
        print(page(outcomes))
    else:
        (Path(__file__).parent / "methods" / "surgeries.md").write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
