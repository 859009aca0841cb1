"""AM-Softmax, and a network's last layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trainable.config import HeadConfig, TrialConfig
from trainable.distill.terms import cross_entropy
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import (
    Pictures,
    build_student,
    build_teacher_network,
    output_shapes,
)
from trainable.networks.heads import AMSoftmax
from trainable.networks.zoo import build

MakeConfig = Callable[..., TrialConfig]
PICTURES = Pictures(10, 3, (8, 8))


def head_of(margin: float = 0.35, scale: float = 12.0) -> AMSoftmax:
    torch.manual_seed(0)
    return AMSoftmax(6, 5, margin, scale)


def embeddings(rows: int = 7) -> Tensor:
    return 3 * torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def student_with(make_config: MakeConfig, head: str) -> BlockNetwork:
    torch.manual_seed(0)
    return build_student(make_config(student={"head": {"name": head}}), PICTURES)


def angle(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return math.acos(dot / (math.hypot(*a) * math.hypot(*b)))


def test_am_softmax_is_equation_6_written_out() -> None:
    """−log e^{s(cos θ_y − m)} / (e^{s(cos θ_y − m)} + Σ_{j≠y} e^{s cos θ_j}), with loops and angles."""
    head, x = head_of(), embeddings()
    labels = torch.arange(7) % 5
    plain = head(x)
    loss = 0.0
    for row, label in enumerate(labels.tolist()):
        cosines = [math.cos(angle(x[row].tolist(), w)) for w in head.weight.tolist()]
        assert plain[row].tolist() == pytest.approx([12.0 * c for c in cosines], abs=1e-5)
        own = math.exp(12.0 * (cosines[label] - 0.35))
        others = sum(math.exp(12.0 * c) for j, c in enumerate(cosines) if j != label)
        loss -= math.log(own / (own + others))
    trained = head.with_margin(plain, labels)
    assert cross_entropy(trained, labels).item() == pytest.approx(loss, rel=1e-5)


def test_the_margin_is_taken_off_at_the_label_alone() -> None:
    head, labels = head_of(), torch.tensor([4, 0, 2, 2, 1, 3, 0])
    plain = head(embeddings())
    lowered = plain - head.with_margin(plain, labels)
    torch.testing.assert_close(lowered, 12.0 * 0.35 * torch.eye(5)[labels])


def test_a_margin_of_zero_leaves_the_plain_logits() -> None:
    head = head_of(margin=0.0)
    plain = head(embeddings())
    assert torch.equal(head.with_margin(plain, torch.arange(7) % 5), plain)


def test_the_lengths_of_embeddings_and_weights_do_not_matter() -> None:
    head, x = head_of(), embeddings()
    plain = head(x)
    with torch.no_grad():
        head.weight *= torch.tensor([[0.01], [3.0], [1.0], [100.0], [0.5]])
    torch.testing.assert_close(head(50 * x), plain)
    assert plain.abs().max() <= 12.0


def test_labels_that_are_no_class_get_no_margin() -> None:
    """On a GPU an index out of range would end the process's CUDA context; a comparison cannot."""
    head = head_of()
    plain = head(embeddings(3))
    assert torch.equal(head.with_margin(plain, torch.tensor([-100, 5, 10**9])), plain)


def test_an_embedding_of_zeros_has_finite_gradients() -> None:
    head, x = head_of(), torch.zeros(2, 6, requires_grad=True)
    labels = torch.tensor([0, 1])
    cross_entropy(head.with_margin(head(x), labels), labels).backward()
    assert x.grad is not None
    assert head.weight.grad is not None
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_logits_are_fp32_whatever_autocast_says() -> None:
    """Cosines near 1 differ by less than bf16 can tell: the products must be fp32, not only the result."""
    head, x = head_of(), embeddings().bfloat16()
    expected = head(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), expected)
        assert torch.equal(head(x.float()), expected)
        assert (x @ x.T).dtype == torch.bfloat16
    assert expected.dtype == torch.float32


def test_initial_directions_point_everywhere_at_length_one() -> None:
    torch.manual_seed(0)
    weight = AMSoftmax(64, 500).weight.detach()
    lengths = weight.norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.02)
    mean_direction = (weight / lengths.unsqueeze(1)).mean(0)
    assert mean_direction.norm() < 2 / math.sqrt(500)


def test_the_state_dict_holds_the_weight_of_fc_alone(make_config: MakeConfig) -> None:
    student = student_with(make_config, "am_softmax")
    names = [name for name in student.network.state_dict() if name.startswith("fc")]
    assert names == ["fc.weight"]
    assert student.network.fc.weight.shape == (10, 32)


def test_the_rest_of_the_network_is_that_of_the_linear_one(make_config: MakeConfig) -> None:
    linear, angular = (student_with(make_config, name) for name in ("linear", "am_softmax"))
    theirs = linear.state_dict()
    for name, value in angular.state_dict().items():
        if "fc" not in name:
            assert torch.equal(value, theirs[name]), name


def test_the_config_gives_margin_and_scale_to_the_right_network(make_config: MakeConfig) -> None:
    config = make_config(
        student={"head": {"name": "am_softmax", "margin": 0.0, "scale": 64.0}},
        teacher={"head": {"name": "am_softmax"}},
    )
    student = build_student(config, PICTURES).network.fc
    teacher = build_teacher_network(config, PICTURES).network.fc
    assert (student.margin, student.scale) == (0.0, 64.0)
    assert (teacher.margin, teacher.scale) == (0.2, 30.0)
    assert isinstance(build_teacher_network(make_config(), PICTURES).network.fc, nn.Linear)


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_gives_plain_logits(mode: bool, make_config: MakeConfig) -> None:
    """In training too: the margin needs labels, and evaluation has none."""
    student = student_with(make_config, "am_softmax").train(mode)
    images = torch.randn(6, 3, 8, 8)
    x, w = student.embed(images).double(), student.network.fc.weight.double()
    expected = 30 * torch.nn.functional.cosine_similarity(x.unsqueeze(1), w.unsqueeze(0), dim=2)
    torch.testing.assert_close(student(images).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_linear_head_has_no_margin(student: BlockNetwork) -> None:
    logits = torch.randn(4, 10)
    assert student.with_margin(logits, torch.zeros(4, dtype=torch.long)) is logits


@pytest.mark.parametrize("head", ["linear", "am_softmax"])
@pytest.mark.parametrize("cuts", [None, ("avgpool",), ("layer2.0", "avgpool"), ()])
def test_embeddings_are_what_the_last_layer_takes(head: str, cuts: tuple[str, ...] | None) -> None:
    own = HeadConfig.model_validate({"name": head})
    built = build("mini_resnet_10_4", PICTURES, path="student.model", head=own)
    network = BlockNetwork(built.network, built.cuts if cuts is None else cuts).eval()
    images = torch.randn(3, 3, 8, 8)
    embedding = network.embed(images)
    assert embedding.shape == (3, 32)
    assert torch.equal(network.network.fc(embedding), network(images))
    assert torch.equal(network.network(images), network(images))


def test_shapes_can_be_asked_of_a_network_without_data(make_config: MakeConfig) -> None:
    with torch.device("meta"):
        student = student_with(make_config, "am_softmax")
        assert output_shapes(student, PICTURES)[-1] == (10,)
