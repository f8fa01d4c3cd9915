"""A device that isn't there: its tensors say that they are on mps, have no float64 and don't mix with those of the CPU."""
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE, T = torch.device("mps:0"), torch.Tensor
INDEXING = (T.__getitem__, T.__setitem__)
CROSSING = (T.to, T.copy_)  # may read one device and write the other


class Away(T):
    "A tensor of the device, which the CPU computes."
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


def put(found):
    "A result, on the device."
    if found.dtype == torch.float64: raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return found if isinstance(found, Away) else found.as_subclass(Away)


def compute(func, args, kwargs):
    "Do what was asked for; TypeError and RuntimeError where such a device would refuse."
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, T)]
    away = [t for t in tensors if isinstance(t, Away)]
    asked = [*(a for a in args if isinstance(a, torch.device | str)), kwargs.get("device")] if func is T.to else [kwargs.get("device")]
    asked = next((torch.device(a) for a in asked if a is not None), None)
    there = bool(away) if asked is None else asked.type == DEVICE.type
    if func == T.device.__get__ and away: return DEVICE
    if func is torch._has_compatible_shallow_copy_type: return False  # a module that is moved there gets new parameters
    if func is T.cpu: there = False
    if func is T.copy_ or func is T.to and len(tensors) == 2: there = isinstance(tensors[func is T.to], Away)
    if func in (T.numpy, T.__array__) and away: raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
    mixed = away and [t for t in tensors if not isinstance(t, Away) and t.ndim]  # a single number goes with any device
    if func in INDEXING and isinstance(args[0], Away): mixed = [t for t in mixed if any(t is value for value in args[2:])]  # it takes the CPU's indices
    if mixed and func not in CROSSING: raise RuntimeError(f"Expected all tensors to be on the same device, and {func.__name__} got shapes {[tuple(t.shape) for t in mixed]} of the CPU and {[tuple(t.shape) for t in away]} of mps:0")
    if there and kwargs.get("generator") is not None: raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
    home = lambda a: "cpu" if func is T.to and isinstance(a, torch.device | str) else a
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*map(home, args), **{name: "cpu" if name == "device" and value is not None else value for name, value in kwargs.items()})
        return tree_map_only(T, put if there else lambda t: t.as_subclass(T) if type(t) is Away else t, found)


class Everything(TorchFunctionMode):
    "Sees also what no tensor of the device takes part in: what is made there or moved there."
    def __torch_function__(self, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


@contextmanager
def fake_device():
    "The device, for the length of a block."
    with Everything(): yield DEVICE
