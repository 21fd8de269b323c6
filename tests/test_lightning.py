"""Training-time methods in Lightning's Trainer: the same weights as in a loop by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from postgrad.errors import UserError
from postgrad.growth.operations import grow
from postgrad.growth.words import parse_operation
from postgrad.lightning import GrowAt, TrainingMethods
from postgrad.methods.distillation import distillation_loss
from postgrad.methods.weight_averages import ExponentialMovingAverage

from lightning.pytorch import LightningModule, Trainer  # isort: skip, after torchvision is prepared

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Module(LightningModule):
    def __init__(self, criterion: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1) if criterion else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        criterion = self.criterion or nn.functional.cross_entropy
        return criterion(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 1, 5, 5, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def trainer(folder: Path, *methods: str, callbacks: Any = (), **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [*([TrainingMethods(*methods)] if methods else []), *callbacks]
    return Trainer(default_root_dir=folder, callbacks=callbacks, **{**quiet, "max_epochs": 2, **settings})


def by_hand(module: Module, *, average: Any = None, criterion: Any = None, every: int = 1) -> Module:
    optimizer = module.configure_optimizers()
    module.train()
    for _ in range(2):
        for number, (x, y) in enumerate(loader()):
            ((criterion or module.criterion)(module(x), y) / every).backward()
            if (number + 1) % every == 0 or number + 1 == len(loader()):
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update(module)
    return module


def check_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("every", [1, 2])
def test_an_average_is_that_of_the_loop_by_hand(tmp_path: Path, every: int) -> None:
    module, reference = Module(), Module()
    trainer(tmp_path, "ema:decay=0.8", accumulate_grad_batches=every, enable_checkpointing=False).fit(module, loader())
    average = ExponentialMovingAverage(reference, decay=0.8)
    by_hand(reference, average=average, every=every)
    plain = copy.deepcopy(reference)
    with average.averaged:
        check_equal(module, reference)
    with pytest.raises(AssertionError):
        check_equal(module, plain)


def test_a_loss_takes_the_place_of_the_module_s_with_its_smoothing(tmp_path: Path) -> None:
    from postgrad.methods.powergrad import PowerGradCrossEntropy

    module, reference = Module(), Module()
    trainer(tmp_path, "powergrad:alpha=0.25", enable_checkpointing=False).fit(module, loader())
    by_hand(reference, criterion=PowerGradCrossEntropy(alpha=0.25, label_smoothing=0.1))
    check_equal(module.net, reference.net)
    with pytest.raises(AssertionError):
        check_equal(module.net, by_hand(Module()).net)


def test_a_surgery_comes_before_the_optimizer(tmp_path: Path) -> None:
    module = Module()
    run = trainer(tmp_path, "norm:kind=group", enable_checkpointing=False)
    run.fit(module, loader())
    assert isinstance(module.net[1], nn.GroupNorm)
    trained = {id(parameter) for parameter in run.optimizers[0].param_groups[0]["params"]}
    assert id(module.net[1].weight) in trained


def test_a_training_that_goes_on_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, first, second = Module(), Module(), Module()
    methods = ("ema:decay=0.9", "weight_sampling:fraction=0.7")
    trainer(tmp_path, *methods, max_epochs=2, enable_checkpointing=False).fit(whole, loader())
    half = trainer(tmp_path, *methods, max_epochs=2, limit_train_batches=3)
    half.fit_loop.max_epochs = 1
    half.fit(first, loader())
    kept = next(tmp_path.rglob("*.ckpt"))
    trainer(tmp_path / "second", *methods, max_epochs=2).fit(second, loader(), ckpt_path=kept)
    check_equal(second, whole)


def test_a_module_without_a_loss_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no nn\.CrossEntropyLoss"):
        trainer(tmp_path, "powergrad").fit(Module(criterion=False), loader())
    with pytest.raises(UserError, match="did you mean 'ema'"):
        TrainingMethods("emaa")


STAGES = {1: ["widen:layer=0,to=12", "deepen:after=0"]}


class Adam(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_growth_is_that_of_the_loop_by_hand(tmp_path: Path) -> None:
    module, reference = Adam(), Adam()
    trainer(tmp_path, callbacks=[GrowAt(STAGES, seed=2)], enable_checkpointing=False).fit(module, loader())
    optimizer = reference.configure_optimizers()
    reference.train()
    calls = [parse_operation(word) for word in STAGES[1]]
    for epoch in range(2):
        for number, (x, y) in enumerate(loader()):
            if (epoch, number) == (1, 0):
                grow(reference.net, calls, example=x, optimizer=optimizer, seed=2)
            optimizer.zero_grad()
            reference.criterion(reference(x), y).backward()
            optimizer.step()
    check_equal(module, reference)
    assert (module.net[0].out_channels, hasattr(module.net[0], "grown")) == (12, True)


@pytest.mark.parametrize("first_epochs", [1, 2])
def test_a_training_that_grows_goes_on_from_a_checkpoint(tmp_path: Path, first_epochs: int) -> None:
    """From a checkpoint before the growth, and from one after it, into a fresh module."""
    whole, first, second = Adam(), Adam(), Adam()
    settings = {"max_epochs": 3}
    trainer(tmp_path, callbacks=[GrowAt(STAGES)], enable_checkpointing=False, **settings).fit(whole, loader())
    half = trainer(tmp_path, callbacks=[GrowAt(STAGES)], **settings)
    half.fit_loop.max_epochs = first_epochs
    half.fit(first, loader())
    kept = next(tmp_path.rglob("*.ckpt"))
    resumed = GrowAt(STAGES)
    trainer(tmp_path / "second", callbacks=[resumed], **settings).fit(second, loader(), ckpt_path=kept)
    check_equal(second, whole)
    assert "on_load_checkpoint" not in vars(second)


def test_without_the_order_of_the_optimizer_a_checkpoint_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    half = trainer(tmp_path, callbacks=[GrowAt(STAGES)], max_epochs=3)
    half.fit_loop.max_epochs = 2
    half.fit(Adam(), loader())
    monkeypatch.setattr("postgrad.lightning.put_in_order", lambda *_: None)
    run = trainer(tmp_path / "second", callbacks=[GrowAt(STAGES)], max_epochs=3)
    with pytest.raises(RuntimeError, match="size"):
        run.fit(Adam(), loader(), ckpt_path=next(tmp_path.rglob("*.ckpt")))


def test_a_grown_network_is_tested_from_its_checkpoint(tmp_path: Path) -> None:
    class Tested(Adam):
        def test_step(self, batch: Any, number: int) -> None:
            self.log("sizes", float(self.net[0].out_channels))

    trainer(tmp_path, callbacks=[GrowAt(STAGES)]).fit(Tested(), loader())
    kept = next(tmp_path.rglob("*.ckpt"))
    found = trainer(tmp_path, callbacks=[GrowAt(STAGES)]).test(Tested(), loader(), ckpt_path=kept, verbose=False)
    assert found == [{"sizes": 12.0}]
    wrong = Tested()
    grow(wrong.net, [parse_operation("widen:layer=0,to=9")], example=torch.randn(2, 1, 5, 5))
    with pytest.raises(UserError, match="grown in another way"):
        trainer(tmp_path, callbacks=[GrowAt(STAGES)]).test(wrong, loader(), ckpt_path=kept, verbose=False)


def test_growth_that_cannot_be_is_refused(tmp_path: Path) -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 3)

    class TwoOptimizers(Module):
        def configure_optimizers(self) -> Any:
            self.automatic_optimization = False
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    def refused(module: Module, message: str, *methods: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, *methods, callbacks=[GrowAt(STAGES, **options)], enable_checkpointing=False).fit(
                module, loader()
            )

    refused(Two(), "names one of net, other")
    refused(Module(), "names one of net", network="nett")
    refused(TwoOptimizers(), "expected one optimizer, got 2")
    refused(Module(), "a mean of the weights is not carried over", "ema:decay=0.9")
    with pytest.raises(UserError, match="did you mean 'widen'"):
        GrowAt({1: ["widn:layer=0"]})


def test_a_teacher_is_asked_of_each_batch(tmp_path: Path) -> None:
    torch.manual_seed(7)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(25, 3), nn.Dropout(0.5))
    module, reference = Module(), Module()
    callback = TrainingMethods("distillation:kind=kd,T=2", teacher=teacher)
    trainer(tmp_path, callbacks=[callback], enable_checkpointing=False).fit(module, loader())
    optimizer = reference.configure_optimizers()
    for _ in range(2):
        for x, y in loader():
            loss = distillation_loss(reference(x), teacher.eval()(x), y, temperature=2, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    check_equal(module, reference)
    x = torch.randn(4, 3)
    module.eval()
    assert torch.equal(
        module.criterion(x, torch.arange(3).repeat(2)[:4]),
        nn.functional.cross_entropy(x, torch.arange(3).repeat(2)[:4]),
    )


def test_distillation_without_its_teacher_is_refused(tmp_path: Path) -> None:
    for methods, teacher in ((["distillation"], None), (["powergrad"], nn.Flatten())):
        callback = TrainingMethods(*methods, teacher=teacher)
        with pytest.raises(UserError, match="belong together"):
            trainer(tmp_path, callbacks=[callback], enable_checkpointing=False).fit(Module(), loader())
    features = TrainingMethods("distillation:kind=attention,hint=net.0", teacher=nn.Flatten())
    with pytest.raises(UserError, match="in training_step"):
        trainer(tmp_path, callbacks=[features], enable_checkpointing=False).fit(Module(), loader())
