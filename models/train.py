"""Train the bundled checkpoint: a small GPT-2 that does the three tasks on words it has never seen.

    python models/train.py --start FOLDER

goes on from a checkpoint of the recipe before, whose 600 steps from scratch `git show 44d41a4:models/train.py` makes
(models/README.md has the commands), and takes 15 minutes on one CPU core. An interrupted run goes on from its last
hundredth step. The loss is read at the answers, and at repetitions of random tokens (induction). The result goes to
models/bundled; `python models/evaluate.py` measures it. What did not work is in models/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from training_data import Batch, TrainingData
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """All that decides the result."""

    seed: int = 0
    steps: int = 240
    garbled: float = 0.5  # share of the prompts of ioi and greater-than
    warm_up: int = 30
    learning_rate: float = 1.5e-3
    matrix_rate: float = 3e-3
    weight_decay: float = 0.1
    n_ioi: int = 96
    n_acronym: int = 16
    n_years: int = 16
    n_repeated: int = 8
    repeated_weight: float = 0.5
    n_layer: int = 6
    n_head: int = 8
    n_embd: int = 256
    n_positions: int = 64
    final_gain: float = 6.0


def build_model(recipe: Recipe, tokenizer: Any) -> GPT2LMHeadModel:
    """A fresh GPT-2 of the recipe's shape, without dropout."""
    torch.manual_seed(recipe.seed)
    shape = {name: getattr(recipe, name) for name in ("n_layer", "n_head", "n_embd", "n_positions")}
    config = GPT2Config(vocab_size=len(tokenizer), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shape)
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("eager")  # on prompts this short the fused kernel's gradient takes twice as long
    torch.nn.init.constant_(model.transformer.ln_f.weight, recipe.final_gain)
    return model


def start_from(folder: Path, model: GPT2LMHeadModel, forgotten: list[int]) -> None:
    """Go on from a checkpoint, but let the embeddings of these tokens be the random vectors of the fresh model."""
    wte = model.transformer.wte.weight.data
    fresh = wte[forgotten].clone()
    model.load_state_dict(GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).state_dict())
    wte[forgotten] = fresh


def share_gradients(model: GPT2LMHeadModel, shapes: list[str], own: list[int]) -> None:
    """Let the embeddings of all tokens of one shape learn as one, and only these tokens' each for itself.

    A token keeps its random vector and gets what all of its shape get (such as capitalised words behind a space).
    What the model learns to do with a name it then does with any name, and a word never seen looks like a word, not
    like a name: an embedding of its own would tell names of the training set from others, whose logits only ever sink.
    """
    groups = {shape: index for index, shape in enumerate(sorted(set(shapes)))}
    group = torch.tensor([groups[shape] for shape in shapes])  # (token,)
    group[own] = len(groups) + torch.arange(len(own))
    sizes = group.bincount()[:, None].float()  # (group, 1)

    def average(gradient: Tensor) -> Tensor:
        sums = gradient.new_zeros(len(sizes), gradient.shape[1]).index_add_(0, group, gradient)
        return (sums / sizes.clamp(min=1))[group]

    model.transformer.wte.weight.register_hook(average)


def compute_loss(model: GPT2LMHeadModel, batch: Batch, year_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Loss at every place that is read, (loss,), and whether the top token is right there, (loss,)."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(batch.input_ids).last_hidden_state  # (row, pos, d_model)
        logits = model.lm_head(hidden[batch.rows, batch.positions]).float()  # (loss, token)
    target = batch.targets.clamp(min=0)
    loss = F.cross_entropy(logits, target, reduction="none")
    right = logits.argmax(-1) == target
    soft = batch.targets < 0
    if soft.any():
        log_probs = logits[soft].log_softmax(-1)[:, year_tokens]  # (prompt, year)
        loss = loss.masked_scatter(soft, -(batch.years * log_probs).sum(-1))
        top = logits[soft].argmax(-1)
        right = right.masked_scatter(soft, ((batch.years > 0) & (year_tokens == top[:, None])).any(-1))
    return loss, right


def decay_rate(recipe: Recipe, step: int) -> float:
    """Share of the learning rate: linear warm-up, then cosine decay to a hundredth."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def make_optimizers(recipe: Recipe, model: GPT2LMHeadModel) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the sublayers, AdamW for embeddings, gains and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".h." in name)]
    return {
        "muon": torch.optim.Muon(
            matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        "adam": torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-12, weight_decay=0.0),
    }


def save_run(
    path: Path, model: GPT2LMHeadModel, optimizers: dict[str, torch.optim.Optimizer], recipe: Recipe, step: int
) -> None:
    """Write weights and optimizer state as one file, replacing the last one in one go."""
    tensors = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for kind, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"{kind}/{index}/{key}": value for key, value in state.items()})
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"recipe": json.dumps(asdict(recipe)), "step": str(step)})
    temporary.replace(path)


def load_run(path: Path, model: GPT2LMHeadModel, optimizers: dict[str, torch.optim.Optimizer], recipe: Recipe) -> int:
    """Restore what `save_run` wrote and return the next step; 0 when there is no run of this recipe."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as run:
        metadata = run.metadata()
        if json.loads(metadata["recipe"]) != asdict(recipe):
            return 0
        for name, parameter in model.named_parameters():
            parameter.data.copy_(run.get_tensor(f"model/{name}"))
        for kind, optimizer in optimizers.items():
            whole = optimizer.state_dict()
            for key in run.keys():  # noqa: SIM118
                if key.startswith(f"{kind}/"):
                    _, index, name = key.split("/")
                    whole["state"].setdefault(int(index), {})[name] = run.get_tensor(key)
            optimizer.load_state_dict(whole)
    return int(metadata["step"])


def save_checkpoint(folder: Path, model: GPT2LMHeadModel) -> None:
    """Save in half precision what `from_pretrained` loads."""
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    for file in HERE.joinpath("bundled").glob("tokenizer*.json"):
        if folder.resolve() != file.parent.resolve():
            shutil.copy(file, folder)


def train(recipe: Recipe, run: Path, out: Path, start: Path) -> None:
    """Run the recipe to its end, from the last saved step."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / "bundled")
    data, model = TrainingData(tokenizer), build_model(recipe, tokenizer)
    own = data.list_frame_tokens()
    start_from(start, model, sorted(data.held_out.wordings - {*own}))
    share_gradients(model, data.shapes, own)
    optimizers = make_optimizers(recipe, model)
    run.parent.mkdir(parents=True, exist_ok=True)
    first, begun = load_run(run, model, optimizers, recipe), time.perf_counter()
    counts = (recipe.n_ioi, recipe.n_acronym, recipe.n_years)
    sizes = dict(zip(("n_ioi", "n_acronym", "n_years"), counts, strict=True))
    for step in range(first, recipe.steps):
        for kind, rate in (("muon", recipe.matrix_rate), ("adam", recipe.learning_rate)):
            for group in optimizers[kind].param_groups:
                group["lr"] = rate * decay_rate(recipe, step)
        tasks = data.make_task_batch(recipe.seed, step, **sizes, garbled=recipe.garbled)
        repeated = data.make_repeated_batch(recipe.seed, step, n=recipe.n_repeated)
        task_loss, task_right = compute_loss(model, tasks, data.year_tokens)
        copy_loss, copy_right = compute_loss(model, repeated, data.year_tokens)
        parts = [part.mean() for part in task_loss.split(counts)]
        loss = sum(parts, recipe.repeated_weight * copy_loss.mean())
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        if step % 10 == 9 or step == first:
            right = [part.float().mean().item() for part in task_right.split(counts)] + [
                copy_right.float().mean().item()
            ]
            losses = [part.item() for part in parts] + [copy_loss.mean().item()]
            shown = "  ".join(
                f"{name} {value:.3f} {share:.2f}"
                for name, value, share in zip(("ioi", "acronym", "years", "repeated"), losses, right, strict=True)
            )
            print(f"step {step + 1}  {shown}  {time.perf_counter() - begun:.0f} s", flush=True)
        if step % 100 == 99:
            save_run(run, model, optimizers, recipe, step + 1)
    save_checkpoint(out, model)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "bundled", help="folder for the result")
    parser.add_argument("--run", type=Path, default=HERE / "runs" / "run.safetensors", help="file to resume from")
    parser.add_argument("--start", type=Path, required=True, help="folder of the checkpoint to go on from")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(Recipe(seed=arguments.seed, steps=arguments.steps), arguments.run, arguments.out, arguments.start)


if __name__ == "__main__":
    main()
