"""GRPO steps of TRL's trainer on the benchmark's model and rows: times, tokens, memory, loss as JSON.

    python benchmarks/trl_step.py DATA --dtype bfloat16 --warmup 1 --steps 3
    python benchmarks/trl_step.py DATA --replay completions.jsonl --num-iterations 2
    python benchmarks/trl_step.py DATA --train lora

With --replay TRL samples nothing: it trains on completions that `vlm-r1 generate` made and prints what it computes of
them (ids of the prompts, log-probabilities, advantages, loss, gradient norm), for comparison with ours.

Settings are the fastest of those tried on a CPU; benchmarks/README.md lists them. The loss is ours in every
term: `loss_type="grpo"`, advantages over the group's standard deviation, k3 without the importance weight that TRL
puts on it by default.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset, Features, Image, List, Value
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vowels import vowel_share

PINNED = {"trl": "1.16.0", "transformers": "5.17.0", "torch": "2.11.0"}
# The linear layers of the language model, where ours has its adapters by default; not those of the vision tower.
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def check_versions() -> dict[str, str]:
    found = {m.__name__: m.__version__.split("+")[0] for m in (trl, transformers, torch)}
    if found != PINNED:
        raise SystemExit(f"versions: expected {PINNED}, got {found}")
    return found


def load_rows(data: Path, order: list[str] | None = None) -> Dataset:
    """VLM-R1's rows as TRL wants them: chat messages, and the image in a column of its own."""
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    if order is not None:
        by_image = {row["image"]: row for row in rows}
        rows = [by_image[name] for name in order]
    columns = {
        "prompt": [[{"role": "user", "content": row["conversations"][0]["value"]}] for row in rows],
        "image": [str(data / "images" / row["image"]) for row in rows],
    }
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(columns, features=Features({"prompt": List(message), "image": Image()}))


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next: loading of data and logging are inside."""

    def __init__(self):
        self.secs: list[float] = []
        self.cpu_secs: list[float] = []
        self.last = (0.0, 0.0)

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = (time.perf_counter(), time.process_time())

    def on_step_end(self, args, state, control, **kwargs):
        now = (time.perf_counter(), time.process_time())
        self.secs.append(now[0] - self.last[0])
        self.cpu_secs.append(now[1] - self.last[1])
        self.last = now


class Watched(GRPOTrainer):
    """TRL's trainer, keeping what it computed of the newest completions."""

    def _generate_and_score_completions(self, inputs):
        self.seen = super()._generate_and_score_completions(inputs)
        return self.seen


def make_trainer(args, dataset: Dataset, clock: Clock, rollout=None) -> Watched:
    steps = args.num_iterations if rollout else args.warmup + args.steps
    completions = args.prompts * args.generations
    micro_batch = args.micro_batch or completions
    expect("completions left over by --micro-batch", completions % micro_batch, 0)
    config = GRPOConfig(
        output_dir=args.output_dir,
        model_init_kwargs={"dtype": args.dtype, "attn_implementation": args.attention},
        # The weights are bf16 themselves: autocast would convert them anew in every pass, and sample in f32.
        bf16=args.autocast,
        use_cpu=True,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=completions // micro_batch,
        num_generations=args.generations,
        max_completion_length=args.completion_tokens,
        generation_kwargs={"min_new_tokens": args.completion_tokens},
        num_iterations=args.num_iterations,
        max_steps=steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        beta=args.beta,
        loss_type="grpo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        gradient_checkpointing=args.gradient_checkpointing,
        shuffle_dataset=rollout is None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    trainer = Watched(
        model=str(args.data / "model"), reward_funcs=vowel_share, args=config, train_dataset=dataset,
        callbacks=[clock], rollout_func=rollout, peft_config=adapters(args),
    )  # fmt: skip
    if args.train == "frozen":
        for name, parameter in trainer.model.named_parameters():
            parameter.requires_grad_(".visual." not in f".{name}")
    return trainer


def adapters(args):
    """PEFT's settings of `--train lora`; nothing otherwise, so that peft is needed for it alone."""
    if args.train != "lora":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout, target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def expect(what: str, got, expected) -> None:
    if got != expected:
        raise SystemExit(f"{what}: expected {expected}, got {got}")


def measure(args) -> dict:
    """Steps of sampling, scoring and training; fails where a step's work is not the one named."""
    clock = Clock()
    trainer = make_trainer(args, load_rows(args.data), clock)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    expect("steps", (len(clock.secs), len(logs)), (args.warmup + args.steps,) * 2)
    for log in logs:
        lengths = [log[f"completions/{which}_length"] for which in ("min", "mean", "max")]
        expect("tokens of a completion", lengths, [args.completion_tokens] * 3)
        expect("groups with equal rewards", log["frac_reward_zero_std"], 0.0)
    samples, tokens = trainer.seen["completion_mask"].shape
    expect("completions of a step", samples, args.prompts * args.generations)
    distinct = len({tuple(row) for row in trainer.seen["completion_ids"].tolist()})
    expect("distinct completions of a step", distinct, samples)
    expect("type of the weights", str(trainer.model.dtype), f"torch.{args.dtype}")
    return {
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "secs": clock.secs[args.warmup :],
        "warmup_secs": clock.secs[: args.warmup],
        # Of all threads: tells settings apart where other work shares the cores.
        "cpu_secs": clock.cpu_secs[args.warmup :],
        "completions": samples,
        "completion_tokens": int(trainer.seen["completion_mask"].sum()),
        "prompt_tokens": int(trainer.seen["prompt_mask"][0].sum()),
        "loss": [log["loss"] for log in logs],
        "grad_norm": [log["grad_norm"] for log in logs],
        "entropy": [log["entropy"] for log in logs],
    }


def replay(args) -> dict:
    """TRL's numbers for given completions, which stand group by group in the file."""
    rows = [json.loads(line) for line in args.replay.read_text(encoding="utf-8").splitlines()]
    expect("completions in the file", len(rows), args.prompts * args.generations)
    order = [Path(row["images"][0]).name for row in rows[:: args.generations]]

    def given(prompts, _trainer):
        expect("prompts asked for", len(prompts), len(rows))
        keys = ("prompt_ids", "completion_ids", "logprobs")
        return {key: [row[key] for row in rows] for key in keys}

    clock = Clock()
    trainer = make_trainer(args, load_rows(args.data, order), clock, given)
    images = [example["image"] for example in trainer.train_dataset]
    texts = [trainer.processing_class.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example["prompt"][0]["content"]}]}],
        add_generation_prompt=True, tokenize=False) for example in trainer.train_dataset]  # fmt: skip
    prompt_ids = trainer.processing_class(images=images, text=texts)["input_ids"]
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    expect("updates", len(logs), args.num_iterations)
    seen = trainer.seen
    expect("tokens of the completions", int(seen["completion_mask"].sum()), sum(len(r["completion_ids"]) for r in rows))
    return {
        "prompt_ids": prompt_ids,
        "logprobs": seen["ref_per_token_logps"].float().tolist(),
        "advantages": seen["advantages"].tolist(),
        "reward": logs[0]["reward"],
        **{key: [log[key] for log in logs] for key in ("loss", "grad_norm", "entropy", "kl")},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder written by make_model.py")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--num-iterations", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--micro-batch", type=int, help="completions of a forward and backward pass; without it, all")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--train", choices=("full", "frozen", "lora"), default="full", help="all weights, all but the vision tower's, or adapters")
    parser.add_argument("--lora-r", type=int, default=64)
    parser.add_argument("--lora-alpha", type=int, default=128)
    parser.add_argument("--lora-dropout", type=float, default=0.05)
    parser.add_argument("--output", type=Path, help="where the JSON goes; without it, stdout")
    return parser.parse_args()


def main() -> None:
    args = parse()
    versions = check_versions()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as args.output_dir:
        result = replay(args) if args.replay else measure(args)
    if args.train == "lora":
        versions |= {"peft": version("peft")}
    result |= {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    text = json.dumps(result) + "\n"
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
