"""Fine-tune a video classifier on your videos, with Accelerate:

    accelerate launch examples/finetune.py --train_dir videos/train --validation_dir videos/val --recipe tps-ssv2 \
        --model_name_or_path microsoft/swin-tiny-patch4-window7-224 --from_image tps --output_dir my-model

One process or many, CPU or GPU, mixed precision as the launcher says. docs/training.md explains the flags.
"""

import argparse
import hashlib
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_tps import TPSVideoProcessor
from hf_tps.training import arguments as flags
from hf_tps.training import results as outcome
from hf_tps.training.augmentation import mix_batch, soft_labels
from hf_tps.training.batch_norm import batch_norms, refresh_batch_norms
from hf_tps.training.checkpoints import (
    Progress,
    epoch_loss,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    remove_incomplete,
    save_checkpoint,
)
from hf_tps.training.console import exit_code, start_logging
from hf_tps.training.data import BrokenVideos, TrainingBatches, VideoDataset, clip_seed, collate
from hf_tps.training.evaluation import Predictions, predict
from hf_tps.training.hub_datasets import StreamedVideos
from hf_tps.training.metrics import summarize, top_k_accuracy
from hf_tps.training.optimization import make_moving_average, make_optimizer, make_scheduler, parameter_groups
from hf_tps.training.protocols import protocol_views
from hf_tps.training.recipes import recipe_named
from hf_tps.training.starting_points import checkpoint_class_names, class_order, load_config
from hf_tps.training.video_lists import LabelledVideos

logger = logging.getLogger("finetune")

# Training videos that a weak result is explained with
VIDEOS_TO_LOOK_AT = 64


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.FlagParser(description="Fine-tune a video classifier.", allow_abbrev=False)
    flags.add_data_arguments(parser, training=True)
    flags.add_model_arguments(parser)
    flags.add_clip_arguments(parser)
    flags.add_training_arguments(parser)
    flags.add_augmentation_arguments(parser)
    flags.add_output_arguments(parser)
    parser.add_argument(
        "--eval_protocol", default="1x1", help="views of a validation video: see evaluate.py (default 1x1)"
    )
    arguments = flags.parse_with_recipe(parser, argv)
    flags.check_training_arguments(parser, arguments)
    return arguments


def main(argv: list[str] | None = None) -> int:
    return exit_code(train, parse_arguments(argv))


def train(arguments: argparse.Namespace) -> None:
    accelerator = start(arguments)
    data, model = prepare_data(arguments, accelerator)
    run = Run(arguments, accelerator, data, prepare_optimization(arguments, accelerator, data, model))
    run.resume()
    run.train()
    if accelerator.is_main_process:
        write_results(run)
    run.explain_weak_result()
    accelerator.wait_for_everyone()
    accelerator.end_training()


# --------------------------------------------------------------------------------------------------- the training loop


class Run:
    """A training from its first or resumed step to its last.

    Attributes:
        progress: what a checkpoint keeps of the run beside weights, optimizer, schedule and random states.
        clips_per_second: of training alone, as last logged.
        predictions, summary: of the latest evaluation; None before there is one.
    """

    def __init__(
        self, arguments: argparse.Namespace, accelerator: Accelerator, data: "Data", optimization: "Optimization"
    ):
        self.arguments, self.accelerator, self.data = arguments, accelerator, data
        self.model, self.optimizer, self.scheduler, self.average = optimization
        self.plain_model = accelerator.unwrap_model(self.model)
        self.checkpoints = arguments.output_dir / "checkpoints"
        self.best = self.checkpoints / "best"  # a model, of the best epoch so far
        self.progress = Progress(fingerprint=data.fingerprint(arguments.seed))
        accelerator.register_for_checkpointing(self.progress)
        if self.average is not None:
            accelerator.register_for_checkpointing(self.average)
        self.broken = BrokenVideos(arguments.on_broken_video)
        self.clock = TrainingClock()
        self.clips_per_second = 0.0
        self.predictions: Predictions | None = None
        self.summary: dict | None = None
        # From here on every process has its own random state (dropout); clips have theirs from their place in an epoch.
        set_seed(arguments.seed, device_specific=True)

    @property
    def trained_model(self) -> nn.Module:
        """What is evaluated and saved: the moving average of the weights where there is one."""
        return self.plain_model if self.average is None else self.average.module

    def train(self) -> None:
        """The steps that are left."""
        arguments, progress, data = self.arguments, self.progress, self.data
        self.announce()
        micro_batches = self.micro_batches()
        self.loss_sum = torch.tensor(progress.loss_sum, device=self.accelerator.device)
        self.bar = tqdm(
            total=data.num_steps,
            initial=progress.step,
            desc="training",
            unit="step",
            disable=None if self.accelerator.is_main_process else True,
        )
        self.model.train()
        self.clock.start()
        while progress.step < data.num_steps and not self.stops_early():
            loss = self.step(micro_batches)
            last, epoch_ends = progress.step == data.num_steps, progress.step % data.steps_per_epoch == 0
            if last or epoch_ends or progress.step % arguments.logging_steps == 0:
                self.log_step(loss)
            if last or epoch_ends:
                self.end_epoch()
                last = last or self.stops_early()
            if flags.checkpoint_is_due(arguments.checkpointing_steps, progress.step, epoch_ends, last):
                self.save()
        self.bar.close()
        if arguments.keep_best and not self.best_is_last():
            self.load_best()
            self.evaluate()
        if data.validation is not None and self.predictions is None:  # continued from the last step
            self.evaluate()

    def step(self, micro_batches: Iterator[dict]) -> torch.Tensor:
        """One optimizer step over `gradient_accumulation_steps` micro-batches; this process's mean loss."""
        accelerator, accumulation = self.accelerator, self.accelerator.gradient_accumulation_steps
        step_loss = torch.zeros((), device=accelerator.device)
        for part in range(accumulation):
            batch = next(micro_batches)
            self.broken.check(batch)
            with accelerator.accumulate(self.model):
                step_loss += self.forward_backward(batch, part) / accumulation
                if accelerator.sync_gradients and self.arguments.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.plain_model)
        self.progress.step += 1
        self.progress.loss_steps += 1
        self.loss_sum += step_loss
        self.clock.clips += self.data.clips_per_step
        self.bar.update()
        return step_loss

    def forward_backward(self, batch: dict, part: int) -> torch.Tensor:
        """Gradients of one micro-batch; its loss."""
        arguments, accelerator = self.arguments, self.accelerator
        pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True)
        targets = soft_labels(batch["labels"], len(self.data.class_names), arguments.label_smoothing)
        targets = targets.to(accelerator.device)
        generator = torch.Generator().manual_seed(
            clip_seed(arguments.seed, self.progress.step, part, accelerator.process_index)
        )
        pixel_values, targets = mix_batch(pixel_values, targets, generator, arguments.mixup, arguments.cutmix)
        loss = F.cross_entropy(self.model(pixel_values=pixel_values).logits.float(), targets)
        accelerator.backward(loss)
        return loss.detach()

    def evaluate(self) -> dict:
        """Scores of the validation videos, and what they come to."""
        predictions = predict(
            self.trained_model,
            self.data.validation,
            self.accelerator,
            batch_size=self.arguments.per_device_eval_batch_size,
            num_workers=self.arguments.dataloader_num_workers,
            on_broken_video=self.arguments.on_broken_video,
        )
        self.progress.broken |= predictions.broken
        self.predictions = predictions
        self.summary = summarize(predictions.scores, predictions.labels, self.data.class_names)
        return self.summary

    def epochs_since_best(self) -> int:
        """How many evaluations ago the best one was, the first of equal ones."""
        scores = [entry["eval_top1"] for entry in self.progress.history]
        return len(scores) - 1 - scores.index(max(scores))

    def best_is_last(self) -> bool:
        return self.epochs_since_best() == 0

    def stops_early(self) -> bool:
        patience = self.arguments.early_stopping_patience
        return patience is not None and bool(self.progress.history) and self.epochs_since_best() >= patience

    def load_best(self) -> None:
        """Put the weights of the best epoch in place of the last one's."""
        self.accelerator.wait_for_everyone()
        best = self.progress.history[-1 - self.epochs_since_best()]
        logger.info("the best epoch was %g, with top-1 %.4g: its weights are kept", best["epoch"], best["eval_top1"])
        saved = type(self.trained_model).from_pretrained(self.best)  # files may name weights otherwise than the model
        self.trained_model.load_state_dict(saved.state_dict())

    def explain_weak_result(self) -> None:
        """Say so where the model does no better than guessing, with what it knows of its own training videos."""
        if self.summary is None:
            return
        guess = outcome.guess(self.summary)
        if not outcome.is_near_guess(self.summary["top1"], guess):
            return
        known = None
        if isinstance(self.data.training, VideoDataset):
            sample = self.data.training.first(VIDEOS_TO_LOOK_AT, self.arguments.seed)
            found = predict(
                self.trained_model,
                sample,
                self.accelerator,
                batch_size=self.arguments.per_device_eval_batch_size,
                num_workers=self.arguments.dataloader_num_workers,
                description="looking at training videos",
            )
            known = top_k_accuracy(found.scores, found.labels, 1)
        logger.warning("%s", outcome.weak_result(self.summary["top1"], guess, known))

    def refresh_batch_norms(self) -> None:
        """Statistics of batch norms that belong to the weights of this step, if `--precise_bn_batches` says so."""
        arguments = self.arguments
        if arguments.precise_bn_batches:
            refresh_batch_norms(
                self.trained_model,
                self.data.training,
                self.accelerator,
                num_batches=arguments.precise_bn_batches,
                batch_size=arguments.per_device_train_batch_size,
                seed=arguments.seed,
                step=self.progress.step,
                num_workers=arguments.dataloader_num_workers,
                broken=self.broken,
            )

    def log_step(self, step_loss: torch.Tensor) -> None:
        """Raises:
        ValueError: if the loss is no longer finite.
        """
        step, loss = self.progress.step, self.accelerator.reduce(step_loss, reduction="mean").item()
        if not math.isfinite(loss):
            raise ValueError(f"The loss is {loss} at step {step}: lower --learning_rate, or set --max_grad_norm 1.")
        rate = self.scheduler.get_last_lr()[0]
        self.clips_per_second = self.clock.clips_per_second()
        self.bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.2e}", **{"clips/s": f"{self.clips_per_second:.1f}"})
        if self.bar.disable:  # no terminal, but perhaps a log that somebody watches
            left = (self.data.num_steps - step) * self.data.clips_per_step / self.clips_per_second
            logger.info(
                "step %d of %d, loss %.3f, rate %.2e, %.1f clips/s, %.0f s left",
                *(step, self.data.num_steps, loss, rate, self.clips_per_second, left),
            )
        figures = {"train_loss": loss, "learning_rate": rate, "clips_per_second": self.clips_per_second}
        self.accelerator.log(figures, step=step)

    def end_epoch(self) -> None:
        """Make the model ready for a test, test it, and write a line of the history."""
        self.clock.stop()
        progress = self.progress
        self.refresh_batch_norms()
        for reasons in gather_object([self.broken.reasons]):
            progress.broken |= reasons
        entry = {
            "step": progress.step,
            "epoch": progress.step / self.data.steps_per_epoch,
            "train_loss": epoch_loss(progress, self.loss_sum, self.accelerator),
        }
        if self.data.validation is not None:
            summary = self.evaluate()
            entry |= {f"eval_{name}": summary[name] for name in ("top1", "top5", "mean_class_accuracy")}
        progress.history.append(entry)
        if self.arguments.keep_best and self.best_is_last() and self.accelerator.is_main_process:
            outcome.save_model(self.best, self.trained_model, self.data.processor)
        progress.loss_steps = 0
        self.loss_sum.zero_()
        self.accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=progress.step)
        if self.accelerator.is_main_process:
            self.bar.write(", ".join(f"{name} {value:.4g}" for name, value in entry.items()), file=sys.stderr)
        self.clock.start()

    def save(self) -> None:
        """A checkpoint from which `resume` continues bit for bit."""
        self.progress.loss_sum = self.loss_sum.item()
        limit = self.arguments.checkpoints_total_limit
        save_checkpoint(self.accelerator, self.checkpoints, self.progress.step, limit)

    def resume(self) -> None:
        """Take up the checkpoint that `--resume_from_checkpoint` names, if it names one."""
        wanted = self.arguments.resume_from_checkpoint
        if not wanted:
            return
        checkpoint = find_checkpoint(wanted, self.checkpoints)
        if checkpoint is None:
            logger.info("no checkpoint in %s yet: starting anew", self.checkpoints)
        else:
            load_checkpoint(self.accelerator, checkpoint)
            logger.info("continuing from %s", checkpoint.name)

    def micro_batches(self) -> Iterator[dict]:
        """This process's micro-batches from the run's step to its last one."""
        arguments, data = self.arguments, self.data
        if self.progress.step >= data.num_steps:
            return iter(())
        workers = arguments.dataloader_num_workers
        # A loader draws a seed from its generator: not from the training's random state.
        options = {"collate_fn": collate, "generator": torch.Generator()}
        if isinstance(data.training, StreamedVideos):
            workers = min(workers, data.training.num_shards)
            batch_size = arguments.per_device_train_batch_size
            return iter(DataLoader(data.training, batch_size, num_workers=workers, **options))
        data.batches.first_step = self.progress.step
        pin_memory = self.accelerator.device.type == "cuda"
        return iter(
            DataLoader(data.training, batch_sampler=data.batches, num_workers=workers, pin_memory=pin_memory, **options)
        )

    def announce(self) -> None:
        """Tell trackers and the terminal what is about to be trained."""
        if self.arguments.report_to:
            settings = outcome.without_paths(vars(self.arguments))
            self.accelerator.init_trackers("finetune", {name: str(value) for name, value in settings.items()})
        logger.info(
            "%s: %.2f M parameters, %d classes, %s videos, %d steps of %d clips",
            type(self.plain_model).__name__,
            num_parameters(self.plain_model) / 1e6,
            len(self.data.class_names),
            "streamed" if self.data.num_videos is None else self.data.num_videos,
            self.data.num_steps,
            self.data.clips_per_step,
        )
        if (
            self.accelerator.mixed_precision != "no"
            and batch_norms(self.plain_model)
            and not self.arguments.precise_bn_batches
        ):
            logger.warning(
                "batch norms gather their statistics in %s; --precise_bn_batches 200 makes them anew in float32",
                self.accelerator.mixed_precision,
            )


class TrainingClock:
    """Counts clips, and the seconds of training without those of evaluations."""

    def __init__(self) -> None:
        self.clips, self.seconds, self.started = 0, 0.0, 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.started

    def clips_per_second(self) -> float:
        """The rate up to now, while the clock runs."""
        return self.clips / (self.seconds + time.perf_counter() - self.started)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------- what a run begins with


def start(arguments: argparse.Namespace) -> Accelerator:
    """The processes, their messages and random states; what can fail without data or a model fails here."""
    accumulation = arguments.gradient_accumulation_steps
    with flags.about("--report_to"):
        outcome.check_tracker(arguments.report_to)
    accelerator = Accelerator(
        log_with=arguments.report_to,
        project_dir=arguments.output_dir / "logs",
        step_scheduler_with_optimizer=False,  # the schedule counts optimizer steps, whatever the number of processes
        # Not given: the launcher's value.
        **({} if accumulation is None else {"gradient_accumulation_steps": accumulation}),
    )
    start_logging(accelerator.is_main_process)
    set_seed(arguments.seed)
    if arguments.recipe:
        logger.info(flags.describe_recipe(arguments, clips_per_step(arguments, accelerator)))
    if arguments.push_to_hub and accelerator.is_main_process:
        with flags.about("--push_to_hub"):
            outcome.check_hub_access(hub_id(arguments), arguments.hub_private_repo)
    return accelerator


def clips_per_step(arguments: argparse.Namespace, accelerator: Accelerator) -> int:
    """The batch of one optimizer step: of all processes and all accumulated micro-batches."""
    micro_batches = accelerator.gradient_accumulation_steps * accelerator.num_processes
    return arguments.per_device_train_batch_size * micro_batches


def hub_id(arguments: argparse.Namespace) -> str:
    return arguments.hub_model_id or arguments.output_dir.resolve().name


@dataclass
class Data:
    """What a run is trained on and tested on, and for how long.

    Attributes:
        class_names: in the order of the model's ids.
        processor: from a video to the model's pixels.
        training: clips by number, or with `--streaming` one after another.
        batches: which clips make up the micro-batches of this process; None for a stream.
        validation: None where nothing is tested.
        clips_per_step: see the function of this name.
        steps_per_epoch, num_steps: optimizer steps.
    """

    class_names: list[str]
    processor: TPSVideoProcessor
    training: VideoDataset | StreamedVideos
    batches: TrainingBatches | None
    validation: VideoDataset | None
    clips_per_step: int
    steps_per_epoch: int
    num_steps: int

    @property
    def num_videos(self) -> int | None:
        """Videos to train on; None for a stream, which does not say."""
        return None if isinstance(self.training, StreamedVideos) else len(self.training)

    def fingerprint(self, seed: int) -> dict:
        """What a resumed run must have in common with the one that was broken off."""
        videos = None if isinstance(self.training, StreamedVideos) else self.training.videos
        listed = [] if videos is None else list(zip(videos.names, videos.labels, strict=True))
        return {
            "videos": len(listed),
            "list": hashlib.sha256(repr(listed).encode()).hexdigest()[:16],
            "classes": len(self.class_names),
            "clips_per_step": self.clips_per_step,
            "steps": self.num_steps,
            "seed": seed,
        }


def prepare_data(arguments: argparse.Namespace, accelerator: Accelerator) -> tuple[Data, nn.Module]:
    """The data, and the model for its classes."""
    rank, processes = accelerator.process_index, accelerator.num_processes
    with accelerator.main_process_first():
        if arguments.streaming:
            found, validation = flags.read_training_stream(arguments, rank, processes)
        else:
            found, validation = flags.read_training_data(arguments)
        class_names = class_order(found.class_names, checkpoint_labels(arguments))
        model, processor = flags.build_model(arguments, class_names)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    open_output_dir(arguments, accelerator)
    clips = flags.clip_reader(arguments, class_names, processor, protocol_views(arguments.eval_protocol, processor))

    def dataset_of(videos: LabelledVideos) -> VideoDataset:
        with accelerator.main_process_first():
            frames = flags.frame_cache(arguments, videos)
        return VideoDataset(videos, class_names, clips, frames=frames)

    if validation is None and (arguments.keep_best or arguments.early_stopping_patience):
        raise ValueError("--keep_best and --early_stopping_patience need validation videos: --validation_dir, ...")
    tested = None if validation is None else dataset_of(validation)
    if isinstance(found, StreamedVideos):
        found.clips, training, batches = clips, found, None
        num_steps = arguments.max_train_steps
        steps_per_epoch = max(1, num_steps // arguments.num_train_epochs)
    else:
        training = dataset_of(found)
        batches = TrainingBatches(
            len(training),
            batch_size=arguments.per_device_train_batch_size,
            seed=arguments.seed,
            num_steps=0,
            accumulation=accelerator.gradient_accumulation_steps,
            rank=rank,
            world_size=processes,
        )
        steps_per_epoch = batches.steps_per_epoch
        num_steps = batches.num_steps = arguments.max_train_steps or arguments.num_train_epochs * steps_per_epoch
    size = clips_per_step(arguments, accelerator)
    return Data(class_names, processor, training, batches, tested, size, steps_per_epoch, num_steps), model


def checkpoint_labels(arguments: argparse.Namespace) -> list[str] | None:
    """The classes of a video checkpoint, whose order is kept where the data has the same ones."""
    if arguments.model_name_or_path is None or arguments.from_image is not None:
        return None
    return checkpoint_class_names(load_config(arguments.model_name_or_path, arguments.trust_remote_code))


def open_output_dir(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Refuse to mix two runs in one folder."""
    folder, checkpoints = arguments.output_dir, arguments.output_dir / "checkpoints"
    used = list_checkpoints(checkpoints) or (folder / "all_results.json").exists()
    if used and not arguments.resume_from_checkpoint and not arguments.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds an older run: --resume_from_checkpoint latest continues it, "
            "--overwrite_output_dir removes it."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if arguments.overwrite_output_dir and not arguments.resume_from_checkpoint:
            shutil.rmtree(checkpoints, ignore_errors=True)
            (folder / "all_results.json").unlink(missing_ok=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        remove_incomplete(checkpoints)
    accelerator.wait_for_everyone()


class Optimization(NamedTuple):
    """The model with what changes it, prepared for all processes; the moving average is None without --ema_decay."""

    model: nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: AcceleratedScheduler
    average: AveragedModel | None


def prepare_optimization(
    arguments: argparse.Namespace, accelerator: Accelerator, data: Data, model: nn.Module
) -> Optimization:
    learning_rate = arguments.learning_rate
    if arguments.scale_learning_rate:
        learning_rate *= data.clips_per_step / recipe_named(arguments.recipe).total_batch_size
    groups = parameter_groups(
        model,
        learning_rate=learning_rate,
        weight_decay=arguments.weight_decay,
        backbone_lr_multiplier=arguments.backbone_lr_multiplier,
        layer_decay=arguments.layer_decay,
        full_lr_names=arguments.full_lr_names,
        no_decay=arguments.no_decay,
    )
    optimizer = make_optimizer(
        arguments.optimizer,
        groups,
        learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        momentum=arguments.momentum,
        nesterov=arguments.nesterov,
    )
    scheduler = schedule_of(arguments, optimizer, data.steps_per_epoch, data.num_steps)
    model.to(accelerator.device)
    average = make_moving_average(model, arguments.ema_decay) if arguments.ema_decay else None
    return Optimization(*accelerator.prepare(model, optimizer, scheduler), average)


def schedule_of(
    arguments: argparse.Namespace, optimizer: torch.optim.Optimizer, steps_per_epoch: int, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rates of a run, whose flags count in epochs."""
    warmup_steps = arguments.num_warmup_steps
    if warmup_steps is None:
        warmup_steps = round(arguments.warmup_epochs * steps_per_epoch)
    return make_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        warmup_steps=warmup_steps,
        total_steps=num_steps,
        milestones=[round(epoch * steps_per_epoch) for epoch in arguments.lr_milestones],
        warmup_rule=arguments.warmup_rule,
        warmup_start_factor=arguments.warmup_start_factor,
        update_every=steps_per_epoch if arguments.schedule_by_epoch else 1,
    )


# --------------------------------------------------------------------------------------------------- what a run leaves


def write_results(run: Run) -> None:
    """Model, processor, card, picture and figures in the output folder, and on the Hub if asked for."""
    arguments, folder, predictions = run.arguments, run.arguments.output_dir, run.predictions
    results = results_of(run)
    outcome.save_model(folder, run.trained_model, run.data.processor)
    picture = predictions is not None and outcome.write_confusion_matrix(
        folder, predictions.scores, predictions.labels, run.data.class_names
    )
    settings = {**outcome.without_paths(vars(arguments)), "data": flags.data_name(arguments)}
    outcome.write_model_card(folder, run.trained_model, results, settings, arguments.license, picture)
    outcome.write_broken_videos(folder, run.progress.broken)
    outcome.write_json(folder / "all_results.json", results)
    logger.info("%s: %s", folder, outcome.headline(results))
    if arguments.push_to_hub:
        logger.info("pushed to %s", outcome.push_to_hub(folder, hub_id(arguments), arguments.hub_private_repo))


def results_of(run: Run) -> dict:
    """The figures for `all_results.json` and the model card."""
    progress, last_entry = run.progress, run.progress.history[-1]
    return {
        "train_loss": last_entry["train_loss"],
        **{f"eval_{name}": value for name, value in (run.summary or {}).items()},
        "epoch": last_entry["epoch"],
        **({"best_epoch": progress.history[-1 - run.epochs_since_best()]["epoch"]} if run.arguments.keep_best else {}),
        "step": progress.step,
        "train_videos": run.data.num_videos,
        "clips_per_second": run.clips_per_second,
        "broken_videos": len(progress.broken),
        "parameters": num_parameters(run.plain_model),
        "history": progress.history,
    }


if __name__ == "__main__":
    sys.exit(main())
