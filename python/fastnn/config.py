"""The version, and what this build and this machine offer."""

from fastnn import _C, cuda

__version__: str = _C.__version__


def show_config() -> None:
    """Prints version, compiler, CPU level, threads and where their number came from, and CUDA."""
    lines = [
        f"fastnn {__version__}, {_C.compiler()}",
        f"CPU level {_C.cpu_level()} (available: {', '.join(_C.cpu_levels())})",
        f"threads {_C.get_num_threads()} (from {_C.num_threads_source()})",
        f"CUDA {_cuda()}",
    ]
    print("\n".join(lines))


def _cuda() -> str:
    if not cuda.is_available():
        return f"not available: {cuda.unavailable_reason()}"
    return "available (emulated on the CPU, for tests)" if cuda.is_emulated() else "available"
