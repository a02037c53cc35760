"""Which library a machine takes, what is said where there is none, and how its wheel is named."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.tags import mac_platforms

from dctps import DpSConv2d, DpSLinear
from dctps.kernels import build, loader
from dctps.kernels.build import LIBRARY, CompileError, compile_library, find_compiler, platform_tag


@pytest.fixture
def anew() -> Iterator[None]:
    """The library is looked for again, and after the test the right one."""
    cached = loader.variant, loader.function, loader._library
    for found in cached:
        found.cache_clear()
    yield
    for found in cached:
        found.cache_clear()


def for_another_machine(path: Path) -> None:
    """This machine's library, as if it were for MIPS."""
    library = bytearray(LIBRARY.read_bytes())
    library[18:20] = (8).to_bytes(2, "little")  # e_machine of an ELF file
    path.write_bytes(library)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("absent", "were not compiled for this"),
        ("another's", "cannot be loaded, perhaps made for another machine than this"),
        ("damaged", "cannot be loaded, perhaps made for another machine than this"),
        ("other sources", "were compiled from other sources than these"),
    ],
)
def test_a_machine_without_kernels_hears_of_it_once(
    kind: str, said: str, anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libdctps.so"
    if kind != "absent" and not LIBRARY.exists():
        pytest.skip("the native kernels were not compiled")
    if kind == "another's":
        for_another_machine(library)
    elif kind == "damaged":
        library.write_bytes(LIBRARY.read_bytes()[:100])
    elif kind == "other sources":
        library.write_bytes(LIBRARY.read_bytes())
        monkeypatch.setattr(loader, "source_hash", lambda: "0123456789abcdef")
    monkeypatch.setattr(loader, "LIBRARY", library)
    monkeypatch.delenv("DCTPS_KERNELS", raising=False)
    layers = DpSLinear(20, 30, density=0.1), DpSConv2d(3, 8, 3, density=0.1)
    inputs = torch.randn(4, 20), torch.randn(2, 3, 6, 6)
    with pytest.warns(UserWarning, match=said) as heard:
        for layer, x in zip(layers, inputs, strict=True):
            for _ in range(2):
                layer(x).sum().backward()
    assert len(heard) == 1
    compiler = find_compiler()
    remedy = "run" if compiler else "install a C compiler (gcc or clang), and run"
    said_of_it = str(heard[0].message)
    assert f"slower torch operations serve: {remedy} `python -m dctps.kernels`, or set" in said_of_it
    assert said_of_it == f"dctps: {loader.missing()}" and "\n" not in said_of_it
    assert loader.variant() == "off"
    torch.testing.assert_close(layers[0](inputs[0]), inputs[0] @ layers[0].weight.T + layers[0].bias)


def test_the_remedy_is_one_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LIBRARY", tmp_path / "libdctps.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "install a C compiler (gcc or clang), and run `python -m" in str(loader.missing())
    monkeypatch.setenv("CC", "cc")
    assert "operations serve: run `python -m" in str(loader.missing())


def test_compiling_says_that_it_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "mycc"
    compiler.write_text('#!/bin/sh\n[ "$1" = -dumpmachine ] && echo x86_64-linux-gnu || exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    notes: list[str] = []
    with pytest.raises(CompileError):
        compile_library(tmp_path / "libdctps.so", on_note=notes.append)
    (note,) = notes
    assert re.fullmatch(rf"dctps: compiling the native kernels, \d\d+ files with {compiler}", note)


def test_where_no_compiler_can_help_none_is_advised(
    anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (loader, build):
        monkeypatch.setattr(module, "SUPPORTED", False)
    monkeypatch.setattr(loader, "LIBRARY", tmp_path / "libdctps.so")
    monkeypatch.delenv("DCTPS_KERNELS", raising=False)
    said = "are not for .* machine; slower torch operations serve: set DCTPS_KERNELS=off to accept it$"
    with pytest.warns(UserWarning, match=said):
        assert loader.variant() == "off"
    with pytest.raises(build.CompileError, match="there are no native kernels for"):
        build.compile_library(tmp_path / "libdctps.so")


@pytest.mark.parametrize(
    ("python", "compiler", "tag"),
    [
        ("linux-x86_64", "x86_64-linux-gnu", "linux_x86_64"),
        ("linux-x86_64", "aarch64-linux-gnu", "linux_aarch64"),
        ("linux-armv7l", "arm-linux-gnueabihf", "linux_armv7l"),
        ("macosx-14.2-arm64", "arm64-apple-darwin23.1.0", "macosx_14_2_arm64"),
        ("macosx-10.9-universal2", "arm64-apple-darwin23.1.0", "macosx_11_0_arm64"),
        ("macosx-10.9-universal2", "x86_64-apple-darwin23.1.0", "macosx_10_9_x86_64"),
    ],
)
def test_a_wheel_is_named_for_the_machine_of_its_library(
    python: str, compiler: str, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cc"
    program.write_text(f"#!/bin/sh\necho {compiler}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    monkeypatch.setattr("sysconfig.get_platform", lambda: python)
    assert platform_tag() == f"py3-none-{tag}"
    if tag.startswith("macosx") and not tag.startswith("macosx_14_2"):  # what pip installs on macOS 14
        assert tag in mac_platforms((14, 0), compiler.partition("-")[0])
