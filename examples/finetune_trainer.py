"""Fine-tune a video classifier with Transformers' Trainer: the short form of finetune.py, for those who use Trainer.

    python examples/finetune_trainer.py --model_name_or_path microsoft/swin-tiny-patch4-window7-224 --from_image tps \
        --train_dir videos/train --validation_dir videos/val --output_dir my-model --num_train_epochs 10 \
        --logging_steps 5

Takes all flags of TrainingArguments, and finetune.py's flags for data, model, clips and augmentation. Recipes, rates by
layer, streams, and runs that continue bit for bit whatever the number of workers are in finetune.py.
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import EvalPrediction, HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.utils import ModelOutput

from hf_tps.training import arguments as flags
from hf_tps.training import results as outcome
from hf_tps.training.augmentation import mix_batch, soft_labels
from hf_tps.training.batch_norm import refresh_batch_norms
from hf_tps.training.console import exit_code
from hf_tps.training.data import BrokenVideos, LabelledVideos, VideoDataset, collate
from hf_tps.training.metrics import summarize


class ClipTrainer(Trainer):
    """Trainer with a loss for class ids and for class probabilities, whatever the model makes of float labels.

    Args:
        precise_bn_batches: see `hf_tps.training.batch_norm`; 0 leaves the statistics as the training gathers them.
        options: of `Trainer`.
    """

    def __init__(self, precise_bn_batches: int = 0, **options: Any):
        super().__init__(**options)
        self.model_accepts_loss_kwargs = False  # the loss below is a plain mean: Trainer divides by accumulated steps
        self.precise_bn_batches = precise_bn_batches
        self.refreshed_at: int | None = None

    def refresh_batch_norms(self) -> None:
        """Statistics of batch norms that belong to the weights of this step, if they are asked for."""
        if not self.precise_bn_batches or self.refreshed_at == self.state.global_step:
            return
        refresh_batch_norms(
            self.model,
            self.train_dataset,
            self.accelerator,
            num_batches=self.precise_bn_batches,
            batch_size=self.args.per_device_train_batch_size,
            seed=self.args.seed,
            step=self.state.global_step,
            num_workers=self.args.dataloader_num_workers,
            broken=self.data_collator.broken,
        )
        self.refreshed_at = self.state.global_step

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        self.refresh_batch_norms()
        return super().evaluate(*arguments, **options)

    def save_model(self, *arguments: Any, **options: Any) -> None:
        self.refresh_batch_norms()
        super().save_model(*arguments, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits.float(), labels)
        return (loss, outputs) if return_outputs else loss


class Collator:
    """Batches for the model; mixing and label smoothing for training clips, which have no axis for views."""

    def __init__(self, arguments: argparse.Namespace, num_classes: int):
        self.arguments, self.num_classes = arguments, num_classes
        self.broken = BrokenVideos(arguments.on_broken_video)

    def __call__(self, items: list[dict]) -> dict:
        batch = collate(items)
        self.broken.check(batch)
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        if pixel_values.ndim == 5:
            labels = soft_labels(labels, self.num_classes, self.arguments.label_smoothing)
            generator = torch.Generator().manual_seed(int(torch.randint(2**32, ())))
            pixel_values, labels = mix_batch(
                pixel_values, labels, generator, self.arguments.mixup, self.arguments.cutmix
            )
        elif pixel_values.shape[1] == 1:
            pixel_values = pixel_values[:, 0]
        return {"pixel_values": pixel_values, "labels": labels}


def parse_arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, TrainingArguments]:
    parser = flags.FlagParser(
        description="Fine-tune a video classifier with Trainer; all flags of TrainingArguments work too.",
        allow_abbrev=False,
    )
    flags.add_data_arguments(parser, training=True)
    flags.add_model_arguments(parser)
    flags.add_clip_arguments(parser)
    flags.add_augmentation_arguments(parser)
    arguments, others = parser.parse_known_args(argv)
    parser.further_flags = tuple(field.name for field in dataclasses.fields(TrainingArguments))
    of_trainer = HfArgumentParser(TrainingArguments, allow_abbrev=False)
    training, unknown = of_trainer.parse_args_into_dataclasses(others, return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.streaming:
        parser.error("--streaming is for finetune.py")
    training.dataloader_num_workers = arguments.dataloader_num_workers
    training.remove_unused_columns = False
    arguments.seed = training.seed
    return arguments, training


def main(argv: list[str] | None = None) -> int:
    return exit_code(train, *parse_arguments(argv))


def train(arguments: argparse.Namespace, training: TrainingArguments) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    set_seed(training.seed)
    videos, validation = flags.read_training_data(arguments)
    class_names = videos.class_names
    model, processor = flags.build_model(arguments, class_names)
    clips = flags.clip_reader(arguments, class_names, processor, {"num_clips": 1, "num_crops": 1})

    def dataset_of(part: LabelledVideos, **options: bool) -> VideoDataset:
        return VideoDataset(part, class_names, clips, frames=flags.frame_cache(arguments, part), **options)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        summary = summarize(prediction.predictions, prediction.label_ids, class_names)
        return {name: summary[name] for name in ("top1", "top5", "mean_class_accuracy")}

    trainer = ClipTrainer(
        precise_bn_batches=arguments.precise_bn_batches,
        model=model,
        args=training,
        train_dataset=dataset_of(videos, training=True),
        eval_dataset=None if validation is None else dataset_of(validation),
        data_collator=Collator(arguments, len(class_names)),
        compute_metrics=compute_metrics,
        processing_class=processor,
    )
    done = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    results = {**done.metrics, **({} if validation is None else trainer.evaluate())}
    trainer.save_model()
    if trainer.is_world_process_zero():
        output_dir = Path(training.output_dir)
        outcome.write_json(output_dir / "all_results.json", results)
        print(outcome.headline(results))
    if training.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    sys.exit(main())
