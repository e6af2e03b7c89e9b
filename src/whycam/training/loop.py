"""The training loop: one step, one epoch, and the state from which a run resumes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.errors import DivergedError, WhycamError, within_hardware
from whycam.training.augment import AugmentationPlan, plan_epoch
from whycam.training.averaging import Averager
from whycam.training.checks import START_AGAIN, USE_LESS_MEMORY, explain_batchnorm_errors, explain_compile_errors
from whycam.training.cuda_graph import GraphedStep, can_capture, use_tensor_lrs
from whycam.training.device_dataset import DeviceDataset
from whycam.training.distributed import DistributedContext
from whycam.training.evaluation import StoppedError, evaluate_model
from whycam.training.history import HISTORY_FILE, EpochRecord, StepProgress, write_history
from whycam.training.optim import load_optimizer_tensors, make_optimizer, optimizer_tensors, set_lr
from whycam.training.run_options import RunOptions
from whycam.training.sam import perturbed_weights
from whycam.training.schedule import lr_and_momentum
from whycam.training.state import STATE_FILE, EpochSums, Position, RunKey, TrainingState, load_state, save_state


class Loop:
    """A training run in memory.

    All random numbers derive from (seed, epoch), and the learning rate from the step. So the state consists of the
    weights, the optimizer, the average, the position and the sums of the current epoch: ``save`` writes them, ``load``
    restores them.
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: DeviceDataset,
        test_data: DeviceDataset,
        key: RunKey,
        folder: Path,
        dist: DistributedContext,
        *,
        options: RunOptions,
        stop: Callable[[], bool],
    ) -> None:
        self.recipe, self.seed, self.key = key.recipe, key.seed, key
        self.train_data, self.test_data = train_data, test_data
        self.device = train_data.labels.device
        self.folder, self.dist, self.options, self.stop = folder, dist, options, stop
        self.on_progress = options.on_progress if dist.is_rank_zero else None
        self.model = model
        self.network = dist.wrap(model, self.recipe)
        self.optimizer = make_optimizer(model, self.recipe)
        self.averager = Averager(model, self.recipe) if self.recipe.averaging != "none" else None
        # Reading a value waits for the GPU, so on a GPU it is done after every tenth step only.
        self.report_every = 1 if self.device.type == "cpu" else 10
        self.bf16 = self.recipe.precision == "bf16"
        self.graphed_step: GraphedStep | None = None
        if can_capture(self.recipe, self.device, dist):
            use_tensor_lrs(self.optimizer, self.device)
            self.graphed_step = GraphedStep()
        self.steps = self.recipe.steps_per_epoch(len(train_data))
        self.position = Position()
        self.sums = EpochSums.zero(self.device)
        self.history: list[EpochRecord] = []
        self.images, self.seconds = 0, 0.0
        self.resumed = False
        # Since this process started, for the speed and the time left.
        self.session_images, self.session_pixels = 0, 0
        self.session_start = self.clock = self.last_save = time.monotonic()

    def run(self) -> bool:
        """Train to the end, or until asked to stop; then save.

        Returns:
            Whether the run is at its end.

        Raises:
            WhycamError: the training diverged, or the recipe does not work here. If not even the first step was
                possible, the folder is left as it was found.
        """
        try:
            with (
                explain_batchnorm_errors(),
                explain_compile_errors(self.recipe),
                within_hardware(USE_LESS_MEMORY, START_AGAIN),
            ):
                return self._run()
        except WhycamError:
            if not self.images and not self.resumed and self.dist.is_rank_zero:
                for name in (STATE_FILE, HISTORY_FILE):
                    (self.folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            raise

    def _run(self) -> bool:
        self.session_start = self.clock = self.last_save = time.monotonic()
        # Drawing an epoch's augmentation takes the CPU a while; a thread draws the next epoch's during this one.
        with ThreadPoolExecutor(1) as background:
            upcoming = background.submit(self.draw_plan, self.position.epoch)
            while self.position.epoch < self.recipe.epochs:
                plan = upcoming.result().to(self.device)
                upcoming = background.submit(self.draw_plan, self.position.epoch + 1)
                if not self._train_epoch(plan):
                    return False
                try:
                    self.finish_epoch()
                except StoppedError:
                    self.save()
                    return False
        return True

    def _train_epoch(self, plan: AugmentationPlan) -> bool:
        """The remaining steps of the current epoch; False if the run was asked to stop."""
        self.network.train()
        while self.position.step < self.steps:
            self.step(plan)
            if self.position.step % self.report_every:
                continue
            due = time.monotonic() - self.last_save > self.options.checkpoint_seconds
            stop, due = self.dist.any(self.stop(), due)
            if stop or due:
                self.save()
            if stop:
                return False
        return True

    def draw_plan(self, epoch: int) -> AugmentationPlan:
        """The augmentation of an epoch; empty after the last epoch."""
        images = len(self.train_data) if epoch < self.recipe.epochs else 0
        return plan_epoch(self.recipe, images, self.train_data.side, self.seed, epoch)

    def stop_requested(self) -> bool:
        """Whether any process was asked to stop."""
        return self.dist.any(self.stop())[0]

    def step(self, plan: AugmentationPlan) -> None:
        """One optimizer step on this process's share of the next batch."""
        recipe, (epoch, step) = self.recipe, (self.position.epoch, self.position.step)
        lr, momentum = lr_and_momentum(recipe, epoch * self.steps + step, recipe.epochs * self.steps)
        size = recipe.crop_size(epoch, self.train_data.side)
        start, stop = step * recipe.batch_size, min((step + 1) * recipe.batch_size, len(plan))
        x, labels = self.train_data.augmented_batch(plan.slice(*self.dist.share(start, stop)), recipe, size)
        set_lr(self.optimizer, lr, momentum)
        batch, sharpness_aware = stop - start, recipe.sharpness_aware(epoch)
        if self.graphed_step is None:
            loss, correct = self.update(x, labels, batch, sharpness_aware)
        else:
            loss, correct = self.graphed_step(self.update, x, labels, batch, sharpness_aware)

        done = epoch * self.steps + step + 1
        if self.averager is not None:
            self.averager.update(self.model, done, recipe.epochs * self.steps)
        self.sums.loss += loss
        self.sums.correct += correct
        self.sums.images += len(labels)
        self.images += batch
        self.session_images += batch
        self.session_pixels += batch * recipe.pixels_per_image(epoch, self.train_data.side)
        self.position = Position(epoch, step + 1)
        if (step + 1) % self.report_every == 0 or step + 1 == self.steps:
            self.report(float(loss) / max(1, len(labels)), lr)

    def update(self, x: Tensor, labels: Tensor, batch: int, sharpness_aware: bool) -> tuple[Tensor, Tensor]:
        """Compute the gradients and take the optimizer's step.

        Args:
            x: this process's images of the batch.
            labels: their classes.
            batch: the number of images over all processes.
            sharpness_aware: whether the step is.

        Returns:
            The summed loss (float64) and the number of correct answers, at the weights before the step.
        """
        loss, correct = self.compute_gradients(x, labels, batch)
        if sharpness_aware:
            with perturbed_weights(self.model, self.recipe.sam_radius):
                self.compute_gradients(x, labels, batch)
        self.optimizer.step()
        return loss, correct

    def compute_gradients(self, x: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Forward and backward pass; the summed loss and the number of correct answers."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.network(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="sum")
        # DistributedDataParallel averages gradients over processes, whose shares may differ by one image.
        torch.autograd.backward(loss * (self.dist.world_size / batch))
        return loss.detach().double(), (logits.detach().argmax(1) == labels).sum()

    def report(self, batch_loss: float, lr: float) -> None:
        """Raise if the loss has diverged; report the progress."""
        if self.dist.any(not math.isfinite(batch_loss))[0]:
            raise self._diverged("loss is", f" (lr {lr:g})")
        if self.on_progress is None:
            return
        sums, position, elapsed = self.sums, self.position, time.monotonic() - self.session_start
        side, epochs = self.train_data.side, range(position.epoch, self.recipe.epochs)
        pixels = [self.recipe.pixels_per_image(epoch, side) for epoch in epochs]
        images_per_epoch = min(self.steps * self.recipe.batch_size, len(self.train_data))
        pixels_left = images_per_epoch * (sum(pixels) - pixels[0] * position.step / self.steps)
        self.on_progress(
            StepProgress(
                epoch=position.epoch + 1,
                epochs=self.recipe.epochs,
                step=position.step,
                steps=self.steps,
                batch_loss=batch_loss,
                loss=float(sums.loss) / sums.images,
                accuracy=float(sums.correct) / sums.images,
                images=self.images,
                lr=lr,
                images_per_second=self.session_images / elapsed,
                seconds_left=pixels_left / self.session_pixels * elapsed,
            )
        )

    def finish_epoch(self) -> None:
        """Evaluate if the recipe wants it after this epoch, add a record to the history, save."""
        recipe, epoch = self.recipe, self.position.epoch
        loss, correct, images = self.dist.sum(self.sums.loss, self.sums.correct, self.sums.images)
        total = recipe.epochs * self.steps
        lrs = [lr_and_momentum(recipe, epoch * self.steps + step, total)[0] for step in range(self.steps)]
        tested = self._test_scores() if (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs else {}
        self.position = Position(epoch + 1, 0)
        self.sums = EpochSums.zero(self.device)
        record = EpochRecord(
            epoch=epoch + 1,
            images=self.images,
            seconds=self.work_seconds(),
            train_loss=loss / images,
            train_accuracy=correct / images,
            max_lr=max(lrs),
            size=recipe.crop_size(epoch, self.train_data.side),
            lr=lrs[-1],
            **tested,
        )
        self.history.append(record)
        if self.options.checkpoint_epochs or epoch + 1 == recipe.epochs:
            self.save()
        elif self.dist.is_rank_zero:
            write_history(self.folder, self.history)
        if self.on_progress is not None:
            self.on_progress(record)

    def _test_scores(self) -> dict[str, Any]:
        with self.averaged_weights():
            result = evaluate_model(self.model, self.test_data, bf16=self.bf16, stop=self.stop_requested)
        return {"test_loss": result.loss, "test_correct": result.correct, "test_images": result.images}

    def work_seconds(self) -> float:
        """Seconds of work so far, over all sessions of this run."""
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        return self.seconds

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the network has the averaged weights, if the recipe averages."""
        return self.averager.applied_to(self.model) if self.averager is not None else contextlib.nullcontext()

    def save(self) -> None:
        """Write the state; all processes must call this.

        Raises:
            DivergedError: the weights are not finite; the last state is kept.
        """
        if not all(bool(value.isfinite().all()) for value in self.model.state_dict().values()):
            raise self._diverged("weights are")
        sums = self.dist.sum(self.sums.loss, self.sums.correct, self.sums.images)
        if self.dist.is_rank_zero:
            tensors = {"model": dict(self.model.state_dict()), "optimizer": optimizer_tensors(self.optimizer)}
            if self.averager is not None:
                tensors["average"] = self.averager.average
            records = [vars(record) for record in self.history]
            seconds = self.work_seconds()
            state = TrainingState(self.key.to_dict(), self.position, tensors, sums, self.images, seconds, records)
            save_state(self.folder / STATE_FILE, state)
            write_history(self.folder, self.history)
        self.last_save = time.monotonic()

    def load(self) -> None:
        """Restore the state that ``save`` wrote.

        Raises:
            WhycamError: there is no state, it is damaged, or it belongs to another run.
        """
        path = self.folder / STATE_FILE
        state = load_state(path)
        self.resumed = True
        self.key.check(state.key, path)
        self.model.load_state_dict(state.tensors["model"])
        load_optimizer_tensors(self.optimizer, state.tensors["optimizer"])
        if self.averager is not None:
            self.averager.load(state.tensors["average"])
        self.position, self.images, self.seconds = state.position, state.images, state.seconds
        self.history = [EpochRecord.from_dict(entry) for entry in state.history]
        if self.dist.is_rank_zero:
            self.sums = EpochSums.of(*state.sums, device=self.device)
            write_history(self.folder, self.history)

    def _diverged(self, subject: str, where: str = "") -> DivergedError:
        path = self.folder / STATE_FILE
        kept = f"the last good state is {path}" if path.exists() else "nothing had been saved yet"
        epoch, step = self.position.epoch + 1, self.position.step
        return DivergedError(
            f"training diverged: the {subject} NaN or infinite at epoch {epoch}, step {step}{where}; start again in "
            f"another folder with a lower lr (now {self.recipe.lr:g}) or a longer warmup; {kept}"
        )
