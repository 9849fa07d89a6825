"""The memory plan against what the driver says that the process uses; others may use the card meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SHARE_USED = 0.85
"""A plan wastes no more than the rest."""
PROGRAM = """
import json, sys, torch
from tests.process_memory import process_bytes
torch.cuda.init()
torch.ones(1, device="cuda")
torch.cuda.empty_cache()
free_bytes, total_bytes = torch.cuda.mem_get_info()
context_bytes = process_bytes()
from penstock.engine.build import load_engine
from penstock.engine.config import EngineConfig
from penstock.engine.memory import plan_memory
from penstock.engine.memory_probe import DeviceMemory
from penstock.engine.model_config import ModelConfig
from tests.engine.toy_engine import make_submit, run_to_end
from pathlib import Path
config = EngineConfig(
    model=sys.argv[1], device="cuda", load_format="dummy", max_model_len=4096, kv_cache_memory_bytes=20 << 30,
    max_num_batched_tokens=2048, max_num_seqs=256,
)
memory = DeviceMemory("cuda", total_bytes, free_bytes)
plan = plan_memory(ModelConfig.from_dir(Path(sys.argv[1])), config, memory, "bfloat16")
core = load_engine(config).core
for fields in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.5, "logprobs": 5}):
    prompts = {index: make_submit([index + 1] * 60, 8, ignore_eos=True, **fields) for index in range(256)}
    run_to_end(core, prompts)
torch.cuda.synchronize()
used_bytes = process_bytes() - context_bytes
print(json.dumps({"planned": plan.total_bytes, "used": used_bytes, "reserved": torch.cuda.memory_reserved()}))
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


@pytest.mark.gpu
@pytest.mark.whole_gpu
def test_what_is_in_use_stays_below_the_plan_and_fills_it(tmp_path: Path) -> None:
    from tests.checkpoints import write_tokenizer

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert child.returncode == 0, child.stderr
    figures = json.loads(child.stdout.splitlines()[-1])
    assert SHARE_USED * figures["planned"] <= figures["used"] <= figures["planned"], figures
