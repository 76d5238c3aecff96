"""
Fine-tune a video classifier on your videos, with Accelerate:

    accelerate launch examples/finetune.py --model_name_or_path microsoft/swin-tiny-patch4-window7-224 --from_image tps \
        --train_dir videos/train --validation_dir videos/val --recipe tps-ssv2 --output_dir my-model

One process or many, CPU or GPU, mixed precision as the launcher says. docs/training.md explains the flags.
"""

import argparse
import hashlib
import logging
import shutil
import sys
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_tps.training import arguments as flags
from hf_tps.training import results as outcome
from hf_tps.training.augmentation import ClipAugmentation, mix_batch, soft_labels
from hf_tps.training.checkpoints import (
    Progress,
    epoch_loss,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    remove_incomplete,
    save_checkpoint,
)
from hf_tps.training.data import BrokenVideos, ClipReader, TrainingBatches, VideoDataset, clip_seed, collate
from hf_tps.training.evaluation import predict
from hf_tps.training.frame_cache import FrameCache
from hf_tps.training.metrics import summarize
from hf_tps.training.optimization import make_moving_average, make_optimizer, make_scheduler, parameter_groups
from hf_tps.training.protocols import protocol_views
from hf_tps.training.recipes import recipe_named
from hf_tps.training.starting_points import (
    checkpoint_class_names,
    class_order,
    freeze_backbone,
    load_config,
)

logger = logging.getLogger("finetune")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a video classifier.", allow_abbrev=False)
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


def open_output_dir(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Refuse to mix two runs in one folder."""
    folder, checkpoints = arguments.output_dir, arguments.output_dir / "checkpoints"
    used = list_checkpoints(checkpoints) or (folder / "all_results.json").exists()
    if used and not arguments.resume_from_checkpoint and not arguments.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds an older run: --resume_from_checkpoint latest continues it, --overwrite_output_dir removes it."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if arguments.overwrite_output_dir and not arguments.resume_from_checkpoint:
            shutil.rmtree(checkpoints, ignore_errors=True)
            (folder / "all_results.json").unlink(missing_ok=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        remove_incomplete(checkpoints)
    accelerator.wait_for_everyone()


def checkpoint_labels(arguments: argparse.Namespace) -> list[str] | None:
    """The classes of a video checkpoint, whose order is kept where the data has the same ones."""
    if arguments.model_name_or_path is None or arguments.from_image is not None:
        return None
    return checkpoint_class_names(load_config(arguments.model_name_or_path, arguments.trust_remote_code))


def build_model(arguments: argparse.Namespace, class_names: list[str]):
    """The model, ready to be trained, and its processor."""
    model, processor = flags.build_model(arguments, class_names)
    if arguments.freeze_backbone:
        freeze_backbone(model)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        train(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train(arguments: argparse.Namespace) -> None:
    accumulation = arguments.gradient_accumulation_steps
    accelerator = Accelerator(
        log_with=arguments.report_to,
        project_dir=arguments.output_dir / "logs",
        step_scheduler_with_optimizer=False,  # the schedule counts optimizer steps, whatever the number of processes
        # Not given: the launcher's value.
        **({} if accumulation is None else {"gradient_accumulation_steps": accumulation}),
    )
    accumulation = accelerator.gradient_accumulation_steps
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    for library in ("accelerate", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    set_seed(arguments.seed)
    batch_size = arguments.per_device_train_batch_size
    total_batch_size = batch_size * accumulation * accelerator.num_processes
    if arguments.recipe:
        logger.info(flags.describe_recipe(arguments, total_batch_size))
    hub_id = (arguments.hub_model_id or arguments.output_dir.resolve().name) if arguments.push_to_hub else None
    if hub_id and accelerator.is_main_process:
        with flags.about("--push_to_hub"):
            outcome.check_hub_access(hub_id, arguments.hub_private_repo)

    # Data, model, processor
    stream = videos = None
    with accelerator.main_process_first():
        if arguments.streaming:
            processes = (accelerator.process_index, accelerator.num_processes)
            stream, validation = flags.read_training_stream(arguments, *processes)
            found = stream.class_names
        else:
            videos, validation = flags.read_training_data(arguments)
            found = videos.class_names
        class_names = class_order(found, checkpoint_labels(arguments))
        model, processor = build_model(arguments, class_names)
    open_output_dir(arguments, accelerator)
    settings = flags.augmentation_settings(arguments, class_names)
    crop_size = (processor.crop_size["height"], processor.crop_size["width"])
    augmentation = None if settings is None else ClipAugmentation(settings, crop_size, processor.antialias)
    clips = ClipReader(processor, augmentation, protocol_views(arguments.eval_protocol, processor))

    def dataset_of(part):
        frames = None
        if arguments.cache_frames:
            with accelerator.main_process_first():
                frames = FrameCache.of(part, arguments.cache_frames, arguments.dataloader_num_workers)
        return VideoDataset(part, class_names, clips, frames=frames)

    validation = None if validation is None else dataset_of(validation)
    if stream is None:
        dataset = dataset_of(videos)
        batches = TrainingBatches(
            len(dataset),
            batch_size=batch_size,
            seed=arguments.seed,
            num_steps=0,
            accumulation=accumulation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        steps_per_epoch = batches.steps_per_epoch
        num_steps = arguments.max_train_steps or arguments.num_train_epochs * steps_per_epoch
    else:
        stream.clips = clips
        num_steps = arguments.max_train_steps
        steps_per_epoch = max(1, num_steps // arguments.num_train_epochs)

    # Optimization
    learning_rate = arguments.learning_rate
    if arguments.scale_learning_rate:
        learning_rate *= total_batch_size / recipe_named(arguments.recipe).total_batch_size
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
    warmup_steps = arguments.num_warmup_steps
    scheduler = make_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        warmup_steps=round(arguments.warmup_epochs * steps_per_epoch) if warmup_steps is None else warmup_steps,
        total_steps=num_steps,
        milestones=[round(epoch * steps_per_epoch) for epoch in arguments.lr_milestones],
    )
    model.to(accelerator.device)
    average = make_moving_average(model, arguments.ema_decay) if arguments.ema_decay else None
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    plain_model = accelerator.unwrap_model(model)
    listed = [] if videos is None else list(zip(videos.names, videos.labels, strict=True))
    progress = Progress(
        fingerprint={
            "videos": len(listed),
            "list": hashlib.sha256(repr(listed).encode()).hexdigest()[:16],
            "classes": len(class_names),
            "clips_per_step": total_batch_size,
            "steps": num_steps,
            "seed": arguments.seed,
        }
    )
    accelerator.register_for_checkpointing(progress)
    if average is not None:
        accelerator.register_for_checkpointing(average)

    # From here on every process has its own random state (dropout); clips have theirs from their place in the epoch.
    set_seed(arguments.seed, device_specific=True)
    checkpoints = arguments.output_dir / "checkpoints"
    if arguments.resume_from_checkpoint:
        checkpoint = find_checkpoint(arguments.resume_from_checkpoint, checkpoints)
        if checkpoint is None:
            logger.info("no checkpoint in %s yet: starting anew", checkpoints)
        else:
            load_checkpoint(accelerator, checkpoint)
            logger.info("continuing from %s", checkpoint.name)
    if stream is None:
        batches.first_step, batches.num_steps = progress.step, num_steps
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=arguments.dataloader_num_workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
            generator=torch.Generator(),  # a loader draws a seed from its generator: not from the training's random state
        )
    else:
        workers = min(arguments.dataloader_num_workers, stream.num_shards)
        loader = DataLoader(stream, batch_size, num_workers=workers, collate_fn=collate, generator=torch.Generator())
    if arguments.report_to:
        accelerator.init_trackers("finetune", {k: str(v) for k, v in outcome.without_paths(vars(arguments)).items()})

    broken = BrokenVideos(arguments.on_broken_video)
    loss_sum = torch.tensor(progress.loss_sum, device=accelerator.device)
    micro_batches = iter(loader) if progress.step < num_steps else iter(())
    logger.info(
        "%s: %.2f M parameters, %d classes, %s videos, %d steps of %d clips",
        type(plain_model).__name__,
        sum(parameter.numel() for parameter in plain_model.parameters()) / 1e6,
        len(class_names),
        "streamed" if videos is None else len(videos),
        num_steps,
        total_batch_size,
    )

    def forward_backward(batch: dict, part: int) -> torch.Tensor:
        pixel_values = batch["pixel_values"].to(accelerator.device, non_blocking=True)
        targets = soft_labels(batch["labels"], len(class_names), arguments.label_smoothing).to(accelerator.device)
        generator = torch.Generator().manual_seed(
            clip_seed(arguments.seed, progress.step, part, accelerator.process_index)
        )
        pixel_values, targets = mix_batch(pixel_values, targets, generator, arguments.mixup, arguments.cutmix)
        loss = F.cross_entropy(model(pixel_values=pixel_values).logits.float(), targets)
        accelerator.backward(loss)
        return loss.detach()

    def evaluate():
        evaluated = plain_model if average is None else average.module
        predictions = predict(
            evaluated,
            validation,
            accelerator,
            batch_size=arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
            on_broken_video=arguments.on_broken_video,
        )
        progress.broken |= predictions.broken
        return predictions, summarize(predictions.scores, predictions.labels, class_names)

    predictions = summary = None
    clips_per_second, measured_seconds, measured_clips = 0.0, 0.0, 0
    bar = tqdm(
        total=num_steps,
        initial=progress.step,
        desc="training",
        unit="step",
        disable=None if accelerator.is_main_process else True,
    )
    model.train()
    begun = time.perf_counter()
    while progress.step < num_steps:
        step_loss = torch.zeros((), device=accelerator.device)
        for part in range(accumulation):
            batch = next(micro_batches)
            broken.check(batch)
            with accelerator.accumulate(model):
                step_loss += forward_backward(batch, part) / accumulation
                if accelerator.sync_gradients and arguments.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            scheduler.step()
        if average is not None:
            average.update_parameters(plain_model)
        progress.step += 1
        progress.loss_steps += 1
        loss_sum += step_loss
        measured_clips += total_batch_size
        bar.update()

        last, epoch_ends = progress.step == num_steps, progress.step % steps_per_epoch == 0
        if progress.step % arguments.logging_steps == 0 or last or epoch_ends:
            loss = accelerator.reduce(step_loss, reduction="mean").item()
            if not torch.isfinite(torch.tensor(loss)):
                raise ValueError(
                    f"The loss is {loss} at step {progress.step}: lower --learning_rate, or set --max_grad_norm 1."
                )
            rate = scheduler.get_last_lr()[0]
            clips_per_second = measured_clips / (measured_seconds + time.perf_counter() - begun)
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.2e}", **{"clips/s": f"{clips_per_second:.1f}"})
            accelerator.log(
                {"train_loss": loss, "learning_rate": rate, "clips_per_second": clips_per_second}, step=progress.step
            )
        if last or epoch_ends:
            measured_seconds += time.perf_counter() - begun
            for reasons in gather_object([broken.reasons]):
                progress.broken |= reasons
            entry = {
                "step": progress.step,
                "epoch": progress.step / steps_per_epoch,
                "train_loss": epoch_loss(progress, loss_sum, accelerator),
            }
            if validation is not None:
                predictions, summary = evaluate()
                entry |= {f"eval_{name}": summary[name] for name in ("top1", "top5", "mean_class_accuracy")}
            progress.history.append(entry)
            progress.loss_steps = 0
            loss_sum.zero_()
            accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=progress.step)
            if accelerator.is_main_process:
                bar.write(", ".join(f"{name} {value:.4g}" for name, value in entry.items()), file=sys.stderr)
            begun = time.perf_counter()
        if flags.checkpoint_is_due(arguments.checkpointing_steps, progress.step, epoch_ends, last):
            progress.loss_sum = loss_sum.item()
            save_checkpoint(accelerator, checkpoints, progress.step, arguments.checkpoints_total_limit)
    bar.close()
    if validation is not None and predictions is None:  # continued from the last step
        predictions, summary = evaluate()

    # Results
    if accelerator.is_main_process:
        last_entry = progress.history[-1]
        results = {
            "train_loss": last_entry["train_loss"],
            **({} if summary is None else {f"eval_{name}": value for name, value in summary.items()}),
            "epoch": last_entry["epoch"],
            "step": progress.step,
            "train_videos": None if videos is None else len(videos),
            "clips_per_second": clips_per_second,
            "broken_videos": len(progress.broken),
            "parameters": sum(parameter.numel() for parameter in plain_model.parameters()),
            "history": progress.history,
        }
        folder = arguments.output_dir
        trained = plain_model if average is None else average.module
        outcome.save_model(folder, trained, processor)
        picture = predictions is not None and outcome.write_confusion_matrix(
            folder, predictions.scores, predictions.labels, class_names
        )
        card_settings = outcome.without_paths(vars(arguments))
        card_settings["data"] = flags.data_name(arguments)
        outcome.write_model_card(folder, trained, results, card_settings, arguments.license, picture)
        if progress.broken:
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(progress.broken.items())]
            (folder / "broken_videos.txt").write_text("".join(lines), encoding="utf-8")
            logger.warning("%d broken videos, listed in %s", len(lines), folder / "broken_videos.txt")
        outcome.write_json(folder / "all_results.json", results)
        shown = {name: results.get(name) for name in ("eval_top1", "eval_top5", "train_loss") if name in results}
        logger.info("%s: %s", folder, ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        if hub_id:
            logger.info("pushed to %s", outcome.push_to_hub(folder, hub_id, arguments.hub_private_repo))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(main())
