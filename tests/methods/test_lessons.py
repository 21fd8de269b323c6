"""Student and teacher see the same augmented picture; kept answers are what the teacher would have said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from postgrad import GradNet, create_model
from postgrad.data.containers import Images
from postgrad.data.preprocessing import Augmentation, Preprocessing, augment
from postgrad.errors import UserError
from postgrad.methods._lessons import Lessons
from postgrad.methods._teacher import Teacher

PIXELS = torch.randint(0, 256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
IMAGES = Images(PIXELS, torch.randint(-1, 3, (300,), generator=torch.Generator().manual_seed(1)))
STUDENT = Preprocessing(crop=6, per_image_standardise=True)
SHIFTED = Augmentation(crop=True, flip=True, contrast=(0.5, 1.5))


class Seen(nn.Module):
    """Answers with some of the pixels that it sees, and counts how often it is asked."""

    def __init__(self, preprocess: Preprocessing, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.preprocess = preprocess
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return x.flatten(1)[:, :3] + self.shift


def lessons(teacher: Any, augmentation: Augmentation = SHIFTED, images: Images = IMAGES) -> Lessons:
    return Lessons(Teacher([teacher], num_classes=3), images, STUDENT, augmentation)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_student_s_inputs_are_those_of_any_training_and_the_teacher_sees_the_same_crop() -> None:
    indices = torch.tensor([4, 200, 7])
    inputs, labels, word = lessons(Seen(STUDENT))(indices, generator())
    expected = augment(PIXELS[indices], STUDENT, SHIFTED, generator())
    assert torch.equal(inputs, expected)
    assert torch.equal(labels, IMAGES.labels[indices])
    assert torch.equal(word, expected.flatten(1)[:, :3])  # a teacher that cuts the same centre sees the same pixels


def test_a_teacher_of_its_own_preprocessing_sees_the_whole_picture() -> None:
    """Without contrast: the teacher wants all 8×8 pixels from 0 to 1, whose centre is the student's crop."""
    shifted = Augmentation(crop=True, flip=True)
    whole = Seen(Preprocessing())
    seen: list[Tensor] = []
    whole.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    indices = torch.arange(40)
    inputs, _, _ = lessons(whole, shifted)(indices, generator())
    (picture,) = seen
    assert picture.shape == (40, 1, 8, 8)
    torch.testing.assert_close(STUDENT.standardise(picture[:, :, 1:7, 1:7]), inputs)
    assert len({tuple(image.flatten().tolist()) for image in picture - PIXELS[indices] / 255}) > 1  # they are shifted


def test_a_fixed_mean_is_never_given_pixels_beyond_those_it_is_for() -> None:
    wild = Augmentation(contrast=(5.0, 6.0))
    seen: list[Tensor] = []
    fixed = Seen(Preprocessing(mean=(0.0,), std=(1.0,)))
    fixed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    lessons(fixed, wild)(torch.arange(5), generator())
    assert float(seen[0].min()) >= 0
    assert float(seen[0].max()) <= 1


def test_a_gradnet_over_cropped_images_is_a_teacher() -> None:
    torch.manual_seed(0)
    base: Any = create_model("mlp", num_classes=3, in_channels=1, image_size=6)
    base.preprocess = STUDENT
    gradnet = GradNet(base, steps=1, batch_size=4).fit(PIXELS[:8], torch.arange(8) % 3)
    indices = torch.arange(5)
    inputs, _, word = lessons(gradnet)(indices, generator())
    logits = gradnet.head_(gradnet._blocks(gradnet.space_, inputs, "all")).view(5, 3, -1).mean(1)
    torch.testing.assert_close(word, logits.detach().log_softmax(1))


def test_kept_answers_are_what_the_teacher_says_of_the_views(tmp_path: Path) -> None:
    kept = lessons(Seen(STUDENT))
    kept.keep(3, tmp_path, seed=0)
    indices = torch.arange(300)
    inputs, labels, word = kept(indices, generator())
    assert torch.equal(word, inputs.flatten(1)[:, :3])
    assert torch.equal(labels, IMAGES.labels)
    again, _, _ = kept(indices, generator())
    assert torch.equal(again, inputs)
    views = {tuple(kept(torch.tensor([9]), generator(seed))[0].flatten().tolist()) for seed in range(40)}
    assert len(views) == 3
    assert np.load(tmp_path / "answers-2.npy").shape == (300, 3)
    assert kept.cpu_seconds > 0


def test_who_goes_on_asks_no_more_and_who_was_interrupted_asks_what_is_left(tmp_path: Path) -> None:
    kept = lessons(Seen(STUDENT))
    kept.keep(2, tmp_path, seed=0)
    other = Seen(STUDENT)
    again = lessons(other)
    again.keep(2, tmp_path, seed=0)
    assert other.asked == 32  # to be known by
    assert again.cpu_seconds == kept.cpu_seconds
    content = json.loads((tmp_path / "answers.json").read_text())
    del content["cpu_seconds"]["1"]
    (tmp_path / "answers.json").write_text(json.dumps(content))
    before = (tmp_path / "answers-1.npy").read_bytes()
    lessons(other).keep(2, tmp_path, seed=0)
    assert other.asked == 32 + 32 + 300
    assert (tmp_path / "answers-1.npy").read_bytes() == before


@pytest.mark.parametrize("what", ["teacher", "images", "augmentation", "seed"])
def test_another_key_asks_anew_and_says_so(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lessons(Seen(STUDENT)).keep(1, tmp_path, seed=0)
    before = np.load(tmp_path / "answers-0.npy")
    capsys.readouterr()
    teacher = Seen(STUDENT, 0.5 if what == "teacher" else 0.0)
    pixels = PIXELS.clone()
    pixels[299] = pixels[299].flip(2) if what == "images" else pixels[299]
    changed = lessons(
        teacher,
        Augmentation(crop=True) if what == "augmentation" else SHIFTED,
        Images(pixels, IMAGES.labels),
    )
    changed.keep(1, tmp_path, seed=3 if what == "seed" else 0)
    assert f"asked anew, since another {what} was kept" in capsys.readouterr().err
    assert teacher.asked == 32 + 300
    assert not np.array_equal(np.load(tmp_path / "answers-0.npy"), before)


def test_nothing_is_kept_of_an_answer_that_was_interrupted(tmp_path: Path) -> None:
    class Tired(Seen):
        def forward(self, x: Tensor) -> Tensor:
            if self.asked > 250:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        lessons(Tired(STUDENT)).keep(1, tmp_path, seed=0)
    assert not list(tmp_path.glob("*.npy"))


def test_features_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not its features"):
        Lessons(
            Teacher([nn.Sequential(Seen(STUDENT))], num_classes=3), IMAGES, STUDENT, SHIFTED, teacher_hint="0"
        ).keep(1, tmp_path, seed=0)
