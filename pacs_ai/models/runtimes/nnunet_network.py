"""The network that an nnU-Net's plans describe, built by a list of what may be in it, and filled with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.runtimes.nnunet_plans import Plans

_MODULES = (
    "dynamic_network_architectures.architectures.unet",
    "dynamic_network_architectures.architectures.residual_unet",
)
#: Class -> its keyword arguments that plans may state; what is not in the list is refused.
_ARGUMENTS = frozenset(
    ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage",
     "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin",
     "nonlin_kwargs", "nonlin_first", "stem_channels", "bottleneck_channels")
)  # fmt: skip
_CLASSES = ("PlainConvUNet", "ResidualEncoderUNet")
#: Layers that plans may name, by the last part of their name.
_LAYERS = {
    layer.__name__: layer
    for layer in (
        torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d, torch.nn.BatchNorm2d,
        torch.nn.BatchNorm3d, torch.nn.Dropout2d, torch.nn.Dropout3d, torch.nn.LeakyReLU, torch.nn.ReLU,
        torch.nn.GELU, torch.nn.SiLU,
    )
}  # fmt: skip
_OPERATIONS = ("conv_op", "norm_op", "dropout_op", "nonlin")
#: Arguments of layers: plain values by these names alone.
_LAYER_ARGUMENTS = frozenset(("eps", "affine", "momentum", "track_running_stats", "inplace", "negative_slope", "p"))
_LARGEST_COUNT = 4096


def build(plans: Plans) -> torch.nn.Module:
    """Return the network with random weights, on the CPU, its output of full size only.

    Raises
    ------
    PipelineFault
        The package ``dynamic-network-architectures`` is missing, or the plans name what is not in the lists.
    """
    module, _, name = str(plans.network.get("network_class_name", "")).rpartition(".")
    if module not in _MODULES or name not in _CLASSES:
        raise PipelineFault(
            f"the network {module}.{name} is not known: {' and '.join(_CLASSES)} of dynamic_network_architectures are"
        )
    try:
        from dynamic_network_architectures.architectures import unet  # type: ignore[import-untyped]
    except ImportError as error:
        raise PipelineFault(
            "networks of nnU-Net need a library of theirs, and not what that asks for: pip install --no-deps "
            '"dynamic-network-architectures>=0.4.1,<0.5"'
        ) from error
    arguments = {
        key: _argument(key, value) for key, value in plans.network["arch_kwargs"].items() if key != "deep_supervision"
    }
    try:
        network = getattr(unet, name)(
            input_channels=len(plans.channels), num_classes=plans.heads, deep_supervision=False, **arguments
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, IndexError) as error:
        raise PipelineFault(f"the plans describe no {name}: {error}") from error
    assert isinstance(network, torch.nn.Module)
    return network


def _argument(key: str, value: Any) -> Any:
    if key not in _ARGUMENTS:
        raise PipelineFault(f"the plans give the network an argument {key!r} that is not known")
    if key in _OPERATIONS:
        return None if value is None else _layer(str(value))
    if key.endswith("_kwargs"):
        return None if value is None else _layer_arguments(key, value)
    _check_plain(key, value)
    return value


def _layer(name: str) -> type[torch.nn.Module]:
    module, _, last = name.rpartition(".")
    if last not in _LAYERS or not (module == "torch.nn" or module.startswith("torch.nn.modules.")):
        raise PipelineFault(f"the layer {name} is not known: {', '.join(sorted(_LAYERS))} of torch.nn are")
    return _LAYERS[last]


def _layer_arguments(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not _LAYER_ARGUMENTS.issuperset(value):
        raise PipelineFault(f"{key} of the plans holds more than {', '.join(sorted(_LAYER_ARGUMENTS))}: {value}")
    for one in value.values():
        if not isinstance(one, bool | int | float):
            raise PipelineFault(f"{key} of the plans holds {one!r}, which is no number")
    return dict(value)


def _check_plain(key: str, value: Any) -> None:
    """Refuse what is no whole number, flag, or list of these, or a number that no network has."""
    if isinstance(value, list):
        for one in value:
            _check_plain(key, one)
    elif value is not None and (not isinstance(value, int) or not 0 <= value <= _LARGEST_COUNT):
        raise PipelineFault(f"{key} of the plans holds {value!r}, which no network has")


def load(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a network; one that lies under several names may be given under any of them.

    Raises
    ------
    PipelineFault
        A tensor is missing, is of another shape, or belongs to nothing; the first few are named.
    """
    own = network.state_dict(keep_vars=True)
    unknown = [name for name in tensors if name not in own]
    given = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, parameter in own.items() if id(parameter) not in given]
    other = [name for name, tensor in tensors.items() if name in own and own[name].shape != tensor.shape]
    for what, names in (("unknown", unknown), ("missing", missing), ("of another shape", other)):
        if names:
            raise PipelineFault(
                f"the weights do not fit the plans: {len(names)} {what}, such as {', '.join(sorted(names)[:3])}"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
