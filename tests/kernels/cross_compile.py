"""Compiles the kernels for GPUs that need not be there, and prints registers and spills as JSON: run by a test.

The interpreter must be off here, and on in the tests beside it.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from genmatch.kernels import programs

ADDRESS = {"seed": "i64", "first": "i32", "step": "i32", "before": "i32"}
PLACE = {"stream": "i32", "size": "i32", "blocks": "i32"}
NUMBERS = dict.fromkeys(("a", "b", "guidance", "std"), "fp32")
JUMP = {
    "out": "*i64",
    "x": "*i64",
    "chance": "*fp32",
    **dict.fromkeys(("whether", "where", "positions", "values"), "i32"),
}


def cases():
    yield programs.normal_program, {"out": "*fp32", **PLACE}, {"BLOCK": 256}
    for kind in ("*fp32", "*bf16", "*fp16"):
        tensors = dict.fromkeys(("out", "x", "y", "other"), kind)
        for guided in (True, False):
            yield programs.step_program, {**tensors, **NUMBERS, **PLACE}, {"GUIDED": guided, "BLOCK": 256}
        for chunks, chunk in ((1, 64), (4, 4096), (64, 4096)):
            yield programs.jump_program, {**JUMP, "logits": kind}, {"CHUNKS": chunks, "CHUNK": chunk}


def compiled(function, types, constants, capability: int) -> dict:
    names = function.arg_names
    signature = {name: {**ADDRESS, **types}.get(name, "constexpr") for name in names}
    source = ASTSource(
        fn=function, signature=signature, constexprs={(names.index(name),): v for name, v in constants.items()}
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        name = re.search(r"\.target (sm_\w+)", kernel.asm["ptx"])[1]
        command = [str(assembler), "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    text = said.stderr + said.stdout
    return {
        "name": function.__name__,
        "capability": capability,
        "constants": constants,
        "registers": int(re.search(r"Used (\d+) registers", text)[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", text))),
        "cubin": len(kernel.asm["cubin"]),
    }


if __name__ == "__main__":
    print(json.dumps([compiled(*case, capability) for capability in (80, 90) for case in cases()]))
