"""Built networks: what they share, what they survive, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import (
    NETWORKS,
    conv_bn,
    example,
    flatten,
    head,
    network,
    random_policy,
)
from torch import Tensor, nn

from automl_compress.compress import Compressor, compress, cost
from automl_compress.errors import InputError, SpaceError, TraceError
from automl_compress.space import Policy, SearchSpace

KINDS = ["resnet8", "vgg", "mobile", "dense", "patch-mixer", "weight-norm", "aliased"]


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a network that compression must not change, tensors by their bytes."""
    state: list[Any] = []
    for name, module in model.named_modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        for key, tensor in tensors:
            if tensor is not None:
                bits = tensor.detach().reshape(-1).view(torch.uint8)
                state.append((name, key, id(tensor), tensor.data_ptr(), tensor.stride()))
                state.append((bits.numpy().tobytes(), tensor.requires_grad))
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
        state.append((name, id(module), type(module), module.training, hooks))
        state.append(getattr(module, "inplace", None))
    return state


def storages(model: nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


def some_policy(compressor: Compressor, seed: int = 0, activations: bool = True) -> Policy:
    return random_policy(compressor.structure, np.random.default_rng(seed), activations)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_the_input_is_never_changed(name: str, training: bool) -> None:
    model, images = network(name).train(training), example(name, 12)
    next(model.parameters()).requires_grad_(False)
    calls: list[int] = []
    next(model.children()).register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    compressor = Compressor(model, images[:1], images)
    compressor.build(some_policy(compressor))
    cost(model, Policy({}), images[:1])
    assert snapshot(model) == before
    count = len(calls)
    model(images)
    assert len(calls) == count + 1


@pytest.mark.parametrize("name", KINDS)
def test_a_network_in_training_compresses_as_one_in_evaluation(name: str) -> None:
    images = example(name, 12)
    built = []
    for training in (False, True):
        compressor = Compressor(network(name).train(training), images[:1], images)
        built.append(compressor.build(some_policy(compressor)))
    assert not any(module.training for network in built for module in network.modules())
    assert torch.equal(built[0](images), built[1](images))


@pytest.mark.parametrize("name", KINDS)
def test_networks_built_later_do_not_disturb_earlier_ones(name: str) -> None:
    images = example(name, 12)
    compressor = Compressor(network(name), images[:1], images, repair="recalibrate")
    original = snapshot(compressor.model)
    first = compressor.build(some_policy(compressor, 1))
    before = snapshot(first)
    outputs = first(images)
    second = compressor.build(some_policy(compressor, 2))
    again = compressor.build(some_policy(compressor, 1))
    assert snapshot(first) == before
    assert snapshot(compressor.model) == original
    assert torch.equal(again(images), outputs)
    assert not torch.equal(second(images), outputs)
    assert not {id(m) for m in first.modules()} & {id(m) for m in again.modules()}


@pytest.mark.parametrize("name", KINDS)
def test_compress_gives_a_network_of_its_own(name: str) -> None:
    model, images = network(name), example(name, 12)
    compressor = Compressor(model, images[:1], images)
    policy = some_policy(compressor)
    result = compress(model, policy, images[:1], images)
    with torch.no_grad():
        assert torch.equal(result(images), compressor.build(policy)(images))
    assert not storages(result) & storages(model)
    assert all(parameter.requires_grad for parameter in result.parameters())
    result.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())


@pytest.mark.parametrize("name", ["resnet8", "mobile", "patch-mixer"])
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(io.BytesIO(saved(m)), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch"],
)
def test_built_networks_can_be_copied(name: str, copied: Callable[[Any], Any]) -> None:
    images = example(name, 12)
    compressor = Compressor(network(name), images[:1], images)
    built = compressor.build(some_policy(compressor))
    other = copied(built)
    assert torch.equal(other(images), built(images))
    assert repr(other) == repr(built)
    assert not storages(other) & storages(built)


def saved(model: nn.Module) -> bytes:
    stream = io.BytesIO()
    torch.save(model, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["resnet8", "mobile", "patch-mixer"])
def test_state_dicts_carry_everything(name: str) -> None:
    images = example(name, 12)
    one, two = (Compressor(network(name, seed), images[:1], images) for seed in (0, 1))
    policy = some_policy(one)
    built, other = one.build(policy), copy.deepcopy(two.build(policy))
    assert not torch.equal(built(images), other(images))
    other.load_state_dict(built.state_dict())
    for a, b in zip(flatten(built(images)), flatten(other(images)), strict=True):
        torch.testing.assert_close(a, b)


def test_building_after_measuring_gives_a_network_that_trains() -> None:
    images = example("resnet8", 12)
    compressor = Compressor(network("resnet8"), images[:1], images)
    policy = some_policy(compressor)
    with torch.inference_mode():
        compressor.build(policy)
    built = copy.deepcopy(compressor.build(policy)).requires_grad_(True)
    built(images).sum().backward()
    assert next(built.parameters()).grad is not None


class Closed(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.lines: Iterator[int] = (line for line in range(3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "shape", "text"),
    [
        (nn.Conv2d(3, 4, 1), (1, 3, 4, 4), "submodules"),
        (nn.Linear(4, 2), (1, 4), "submodules"),
        (Closed(), (1, 4), "copy"),
        (tied(), (1, 4), "'2.weight' is also '0.weight'"),
        (nn.Sequential(nn.Linear(4, 2)), (1, 5), "example input"),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 2, 4, 4), "(1, 2, 4, 4)"),
    ],
)
def test_networks_that_cannot_be_traced_are_refused_in_one_line(
    model: nn.Module, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(TraceError, match=re.escape(text)) as caught:
        Compressor(model, torch.zeros(shape))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def resnet8() -> Compressor:
    return Compressor(network("resnet8"), example("resnet8"), example("resnet8", 4))


@pytest.mark.parametrize(
    ("genes", "text"),
    [
        ({"channels:layer9": 3}, "'channels:layer9' is none"),
        ({"channels:conv1": 17}, "at most 16, but is 17"),
        ({"channels:linear": 9}, "cannot be cut"),
        ({"weight_bits:nothing": 4}, "'weight_bits:nothing' is none"),
        ({"activation_bits:bn1": 4}, "'activation_bits:bn1' is none"),
        ({"kernel_sparsity:bn1": 0.5}, "'kernel_sparsity:bn1' is none"),
        ({"kernel_sparsity:linear": 0.5}, "must be a convolution, but 'linear' is a Linear"),
    ],
)
def test_policies_that_do_not_fit_are_refused_in_one_line(
    genes: dict[str, Any], text: str, resnet8: Compressor
) -> None:
    for use in (resnet8.build, resnet8.cost):
        with pytest.raises(SpaceError, match=re.escape(text)) as caught:
            use(Policy(genes))
        assert "\n" not in str(caught.value)
    resnet8.build(Policy({"channels:linear": 10}))


def test_bits_need_a_layer_with_a_low_bit_form() -> None:
    compressor = Compressor(network("decoder"), example("decoder"))
    for use in (compressor.build, compressor.cost):
        with pytest.raises(SpaceError, match="'2' is a ConvTranspose2d"):
            use(Policy({"weight_bits:2": 4}))


def test_activation_bits_need_calibration_images() -> None:
    compressor = Compressor(network("vgg"), example("vgg"))
    with pytest.raises(SpaceError, match="calibration"):
        compressor.build(Policy({"activation_bits:fc1": 4}))


def test_unknown_criteria_are_refused() -> None:
    with pytest.raises(InputError, match=r"one of l1, .*, but is 'l7'"):
        Compressor(network("vgg"), example("vgg"), criterion="l7")


def test_a_shared_layer_is_quantized_for_all_its_uses() -> None:
    images = example("shared", 4)
    compressor = Compressor(network("shared"), images[:1], images)
    built: Any = compressor.build(Policy({"weight_bits:shared": 3}))
    uses: list[int] = []
    built.shared.register_forward_hook(lambda *_: uses.append(1))
    built(images)
    assert len(uses) == 3


def _compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")  # the usual one is imported for seconds


@pytest.mark.parametrize(
    "wrap", [_compiled, nn.DataParallel, lambda m: _compiled(nn.DataParallel(m))]
)
def test_wrappers_are_left_out(wrap: Any) -> None:
    """A wrapper of compilation would compile every candidate."""
    model = network("vgg")
    wrapped = wrap(model)
    policy = Policy({"channels:features.0.0": 3, "weight_bits:fc1": 4})
    with torch.no_grad():
        outputs = [compress(m, policy, example("vgg"))(example("vgg", 3)) for m in (model, wrapped)]
    assert torch.equal(*outputs)
    assert type(compress(wrapped, policy, example("vgg"))) is type(model)
    assert not isinstance(wrapped, type(model))


def test_synchronized_norms_are_cut_and_measured_like_others() -> None:
    """They come from training on several GPUs."""
    model = network("vgg")
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    policy = Policy({"channels:features.0.0": 3, "weight_bits:fc1": 4})
    outputs = []
    for one in (model, synchronized):
        compressor = Compressor(one, example("vgg"), example("vgg", 8), repair="recalibrate")
        outputs.append(compressor.build(policy)(example("vgg", 3)))
    assert torch.equal(*outputs)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)

    def forward(self, x: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
        return self.first(x) + scale * other


class Mixed(nn.Sequential):
    """Its layers compute in bfloat16, which hides what a wrong cut changes."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = super().forward(x)
        return x.float()


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (network("vgg").double(), example("vgg").double(), "must be float32, but 'features.0.0"),
        (network("vgg").half(), example("vgg").half(), "torch.float16; convert it"),
        (network("vgg"), (example("vgg"), example("vgg")), "one tensor, but is a tuple"),
        (network("vgg"), example("vgg").numpy(), "one tensor, but is a ndarray"),
        (Pair(), example("vgg"), "one tensor, but Pair.forward takes x, other; put it"),
        (network("vgg"), example("vgg")[:0], r"shape (0, 3, 16, 16); give one"),
        (network("vgg").to("meta"), example("vgg"), "on the meta device; load"),
        (nn.Sequential(nn.LazyLinear(4)), example("vgg"), "call the network on an input first"),
        (torch.jit.ScriptModule(), example("mlp"), "give the module itself"),
        (nn.Sequential(nn.Linear(4, 8), nn.Sequential(torch.jit.ScriptModule())),
         torch.zeros(1, 4), "but '1.0' is a ScriptModule; give the module that was scripted"),
        (Mixed(), torch.rand(1, 4), "layer '0' gives torch.bfloat16; remove torch.autocast"),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), Half()), torch.rand(1, 4),
         "but it gives torch.float16; remove"),
        (nn.Linear, example("vgg"), "Python code, but is Linear"),
        (network("vgg").state_dict(), example("vgg"), "but is a OrderedDict"),
    ],
)  # fmt: skip
def test_what_is_no_network_or_input_is_refused(model: Any, inputs: Any, said: str) -> None:
    with pytest.raises(TraceError, match=re.escape(said)) as caught:
        cost(model, Policy({}), inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", [{"channels:fc1": 3}, None])
def test_policies_must_be_policies(policy: Any) -> None:
    for use in (compress, cost):
        with pytest.raises(SpaceError, match="must be compressed by a Policy"):
            use(network("vgg"), policy, example("vgg"))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([example("vgg")], "one tensor, but are a list; stack"),
        (torch.zeros(4, 1, 16, 16), "(3, 16, 16) torch.float32, but are (1, 16, 16)"),
        (example("vgg", 4).double(), "but are (3, 16, 16) torch.float64; prepare"),
        (example("vgg", 4) * torch.nan, "must be finite"),
    ],
)  # fmt: skip
def test_calibration_images_must_be_like_the_example(images: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        Compressor(network("vgg"), example("vgg"), images)


def test_hooks_of_unknown_kind_leave_their_layer_whole() -> None:
    class Normalizing:
        """Computes a weight before every call, as torch.nn.utils.weight_norm did."""

        def __call__(self, module: Any, _: Any) -> None:
            norm = module.weight_v.flatten(1).norm(dim=1)[:, None, None, None]
            module.weight = module.weight_g * module.weight_v / norm

    layer = nn.Conv2d(6, 8, 1)
    weight = layer.weight.detach()
    del layer._parameters["weight"]
    layer.weight_g = nn.Parameter(torch.ones(8, 1, 1, 1))
    layer.weight_v = nn.Parameter(weight)
    layer.register_forward_pre_hook(Normalizing())
    model = nn.Sequential(conv_bn(3, 6), layer, nn.ReLU(), head(8)).eval()
    compressor = Compressor(model, example("vgg"))
    names = [layer.name for layer in compressor.structure.layers]
    assert names == ["0.0", "3.2"]
    assert {g.name for g in compressor.structure.groups if not g.protected} == set()
    with torch.no_grad():
        assert torch.equal(compressor.build(Policy({}))(example("vgg")), model(example("vgg")))


def test_operations_that_break_the_tracer_protect_what_enters_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from automl_compress.compress.tracing.label_rules import LabelRules

    def fail(*args: Any) -> None:
        raise ZeroDivisionError("integer division\nby zero")

    monkeypatch.setattr(LabelRules, "_spatial", fail)
    images = example("vgg", 8)
    compressor = Compressor(network("vgg"), images[:1], images)
    reason = "its channels pass 'aten.max_pool2d_with_indices.default' (ZeroDivisionError)"
    protected = {g.name: g.protected for g in compressor.structure.groups if g.protected}
    assert protected == {
        "features.0.0": reason,
        "features.2.0": reason,
        "fc2": "its channels are the network's output",
    }
    built: Any = compressor.build(Policy({"weight_bits:fc1": 4, "channels:fc1": 3}))
    assert built.fc1.weight_bits == 4


def test_tracing_has_a_time_limit() -> None:
    class Endless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            while x.sum() < torch.inf:
                x = x + 1
            return self.layer(x)

    for derive in (Compressor, SearchSpace.from_model):
        with pytest.raises(TraceError, match=re.escape("within 0.05 seconds")) as caught:
            derive(Endless(), torch.zeros(1, 4), time_limit=0.05)  # type: ignore[operator]
        assert "\n" not in str(caught.value)
        assert "time_limit" in str(caught.value)


@pytest.mark.parametrize("name", ["resnet8", "vgg", "mobile", "dense"])
@pytest.mark.parametrize("kinds", [(nn.Conv2d, nn.Linear), (nn.BatchNorm2d,)])
def test_wrong_couplings_are_found_out(
    name: str, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shifting which channel one module's place belongs to must protect the group."""
    from automl_compress.compress.tracing import trace as tracing

    real = tracing.coupled_groups

    wrong: set[str] = set()

    def shifted(model: nn.Module, *args: Any) -> Any:
        for group in real(model, *args):
            for member in group.members:
                part = model.get_submodule(member.module)
                if isinstance(part, kinds) and (member.axis == "in" or len(kinds) == 1):
                    member.channels[:] = np.roll(member.channels, 1)
                    wrong.add(group.name)
                    break
            yield group

    monkeypatch.setattr(tracing, "coupled_groups", lambda *args: list(shifted(*args)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = NETWORKS[name]().eval()  # initial weights: all BatchNorms alike
    groups = Compressor(model, example(name)).structure.groups
    assert wrong
    assert all(group.protected for group in groups if group.name in wrong)


class Remembering(nn.Module):
    """Keeps what it computed from its parameters, as LeViT does with its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.offset = nn.Parameter(torch.rand(8))
        self.last = nn.Conv2d(8, 4, 3)
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        offset = self.cache.setdefault("offset", [2 * self.offset.sum()])[0]
        return self.last(self.first(x) + offset).mean((2, 3))


def test_networks_that_ran_before_can_be_copied() -> None:
    network, images = Remembering(), torch.randn(2, 3, 8, 8)
    before = network(images)
    assert before.requires_grad
    compressor = Compressor(network, images[:1])
    built = compressor.build(Policy({"channels:first": 8}))
    assert torch.equal(built(images), before)
    assert compressor.build(Policy({"channels:first": 5})).first.out_channels == 5


class Chaotic(nn.Module):
    """Every step enlarges small differences."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(3 if k == 0 else 48, 48, 3) for k in range(7))
        self.last = nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = torch.sin(100 * step(x))
        return self.last(x)


@pytest.mark.parametrize("wrong", [False, True])
def test_networks_that_enlarge_rounding_can_be_cut(
    wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither float32 nor float64 is exact enough here; a wrong cut shows all the same."""
    from automl_compress.compress.tracing import trace as tracing

    real = tracing.coupled_groups

    def maybe_shifted(*args: Any) -> Any:
        groups = real(*args)
        if wrong:
            member = next(m for m in groups[5].members if m.axis == "in")
            member.channels[:] = np.roll(member.channels, 1)
        return groups

    monkeypatch.setattr(tracing, "coupled_groups", maybe_shifted)
    torch.manual_seed(0)
    groups = Compressor(Chaotic(), torch.randn(1, 3, 16, 16)).structure.groups
    protected = [group.name for group in groups if group.protected]
    assert protected == (["steps.5", "last"] if wrong else ["last"])


def test_outputs_of_any_form_are_kept() -> None:
    images = example("outputs", 8)
    compressor = Compressor(network("outputs"), images[:1], images)
    built = compressor.build(Policy({"channels:stem.0.0": 3, "weight_bits:two": 4}))
    output: Any = built(images)
    assert list(output) == ["logits", "maps"]
    assert isinstance(output["maps"], tuple)


def test_criteria_score_whole_groups() -> None:
    model: Any = network("resnet8")
    compressor = Compressor(model, example("resnet8"))
    with torch.no_grad():
        for name in ("conv1", "layer1.0.conv2"):
            weight: Tensor = model.get_submodule(name).weight
            weight[5] *= 100
    strong = Compressor(model, example("resnet8"))
    kept: Any = strong.build(Policy({"channels:conv1": 1})).conv1
    assert torch.equal(kept.weight, model.conv1.weight[5:6])
    other: Any = compressor.build(Policy({"channels:conv1": 1})).conv1
    assert other.weight.shape == kept.weight.shape
