"""The training loop: one step, one epoch, and the state that lets it stop anywhere and go on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whycam.errors import DivergedError, WhycamError, within_hardware
from whycam.training.augment import Plan, plan_epoch
from whycam.training.averaging import Averager
from whycam.training.checks import AGAIN, SMALLER, able_to_compile, enough_for_batchnorm
from whycam.training.cuda_graph import GraphedStep, can_record, make_rates_tensors
from whycam.training.device_dataset import DeviceData
from whycam.training.distributed import DistributedContext
from whycam.training.evaluation import StoppedError, evaluate
from whycam.training.history import HISTORY_FILE, EpochRecord, Progress, write_history
from whycam.training.optim import load_optimizer_tensors, make_optimizer, optimizer_tensors, set_rates
from whycam.training.sam import perturbed_weights
from whycam.training.schedule import schedule
from whycam.training.state import STATE_FILE, Meters, Position, RunKey, State, load_state, save_state

Listener = Callable[[Progress | EpochRecord], None]


class Loop:
    """A training run in memory.

    Everything that is random derives from (seed, epoch), the schedule from the step, so the state is weights,
    optimizer, average, position and the present epoch's sums: what ``save`` writes and ``load`` restores.
    """

    def __init__(
        self,
        model: nn.Module,
        train: DeviceData,
        test: DeviceData,
        key: RunKey,
        folder: Path,
        processes: DistributedContext,
        *,
        checkpoint_seconds: float,
        checkpoint_epochs: bool = True,
        listener: Listener | None,
        stop: Callable[[], bool],
    ) -> None:
        self.recipe, self.seed, self.key = key.recipe, key.seed, key
        self.train, self.test = train, test
        self.device = train.labels.device
        self.folder, self.processes = folder, processes
        self.checkpoint_seconds, self.checkpoint_epochs = checkpoint_seconds, checkpoint_epochs
        self.listener, self.stop = listener, stop
        self.model = model
        self.network = processes.wrap(model, self.recipe)
        self.optimizer = make_optimizer(model, self.recipe)
        self.averager = Averager(model, self.recipe) if self.recipe.averaging != "none" else None
        # Reading a value makes a GPU wait, so there it is done now and then only.
        self.patience = 1 if self.device.type == "cpu" else 10
        self.bf16 = self.recipe.precision == "bf16"
        self.recorded: GraphedStep | None = None
        if can_record(self.recipe, self.device, processes):
            make_rates_tensors(self.optimizer, self.device)
            self.recorded = GraphedStep()
        self.steps = self.recipe.steps_per_epoch(len(train))
        self.position = Position()
        self.meters = Meters.zero(self.device)
        self.history: list[EpochRecord] = []
        self.images, self.seconds = 0, 0.0
        self.resumed = False
        # Since this start alone, for the rate and the time left.
        self.images_here, self.pixels_here = 0, 0
        self.started = self.clock = self.saved = time.monotonic()

    def run(self) -> bool:
        """Train until the end, or until asked to stop (then the state is saved); whether it is the end.

        Raises:
            WhycamError: the training diverged, or cannot be; if not a single step can, the folder is as before.
        """
        try:
            with enough_for_batchnorm(), able_to_compile(self.recipe), within_hardware(SMALLER, AGAIN):
                return self._run()
        except WhycamError:
            if not self.images and not self.resumed and self.processes.first:
                for name in (STATE_FILE, HISTORY_FILE):
                    (self.folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            raise

    def _run(self) -> bool:
        self.started = self.clock = self.saved = time.monotonic()
        # An epoch's draws take a while on the host, which otherwise only waits for a GPU: they are made an epoch ahead.
        with ThreadPoolExecutor(1) as ahead:
            return self._epochs(ahead)

    def _epochs(self, ahead: Executor) -> bool:
        upcoming = ahead.submit(self.plan, self.position.epoch)
        while self.position.epoch < self.recipe.epochs:
            plan = upcoming.result().to(self.device)
            upcoming = ahead.submit(self.plan, self.position.epoch + 1)
            self.network.train()
            while self.position.step < self.steps:
                self.step(plan)
                if self.position.step % self.patience:
                    continue
                due = time.monotonic() - self.saved > self.checkpoint_seconds
                stop, due = self.processes.any(self.stop(), due)
                if stop or due:
                    self.save()
                if stop:
                    return False
            try:
                self.finish_epoch()
            except StoppedError:
                self.save()
                return False
        return True

    def plan(self, epoch: int) -> Plan:
        """An epoch's draws; past the last one, none."""
        images = len(self.train) if epoch < self.recipe.epochs else 0
        return plan_epoch(self.recipe, images, self.train.side, self.seed, epoch)

    def asked_to_stop(self) -> bool:
        """Whether any process was."""
        return self.processes.any(self.stop())[0]

    def step(self, plan: Plan) -> None:
        """One optimizer step on this process's share of the next batch."""
        recipe, (epoch, step) = self.recipe, (self.position.epoch, self.position.step)
        lr, momentum = schedule(recipe, epoch * self.steps + step, recipe.epochs * self.steps)
        size = recipe.crop_size(epoch, self.train.side)
        start, stop = step * recipe.batch_size, min((step + 1) * recipe.batch_size, len(plan))
        x, labels = self.train.augmented(plan.part(*self.processes.share(start, stop)), recipe, size)
        set_rates(self.optimizer, lr, momentum)
        batch, sharp = stop - start, recipe.sharpness_aware(epoch)
        if self.recorded is None:
            loss, correct = self.descend(x, labels, batch, sharp)
        else:
            loss, correct = self.recorded(self.descend, x, labels, batch, sharp)

        done = epoch * self.steps + step + 1
        if self.averager is not None:
            self.averager.update(self.model, done, recipe.epochs * self.steps)
        self.meters.loss += loss
        self.meters.correct += correct
        self.meters.images += len(labels)
        self.images += batch
        self.images_here += batch
        self.pixels_here += batch * recipe.pixels(epoch, self.train.side)
        self.position = Position(epoch, step + 1)
        if (step + 1) % self.patience == 0 or step + 1 == self.steps:
            self.report(float(loss) / max(1, len(labels)), lr)

    def descend(self, x: Tensor, labels: Tensor, batch: int, sharp: bool) -> tuple[Tensor, Tensor]:
        """Gradients and the optimizer's step; the summed loss (float64) and the number of right answers.

        Of ``batch`` images over all processes, ``x`` are this one's. With ``sharp`` the step is sharpness-aware.
        """
        loss, correct = self.differentiate(x, labels, batch)
        if sharp:
            with perturbed_weights(self.model, self.recipe.sam_radius):
                self.differentiate(x, labels, batch)
        self.optimizer.step()
        return loss, correct

    def differentiate(self, x: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Forward and backward; the loss and the right answers."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.network(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="sum")
        # The wrapped network averages gradients over processes; their shares of the batch may differ by one image.
        torch.autograd.backward(loss * (self.processes.count / batch))
        return loss.detach().double(), (logits.detach().argmax(1) == labels).sum()

    def report(self, batch_loss: float, lr: float) -> None:
        """Stop if the loss has diverged; tell the listener where the run is."""
        if self.processes.any(not math.isfinite(batch_loss))[0]:
            raise self.diverged(f"the loss is no longer finite at a learning rate of {lr:g}")
        if self.listener is None:
            return
        meters, position, elapsed = self.meters, self.position, time.monotonic() - self.started
        work = [self.recipe.pixels(epoch, self.train.side) for epoch in range(position.epoch, self.recipe.epochs)]
        per_epoch = min(self.steps * self.recipe.batch_size, len(self.train))
        left = per_epoch * (sum(work) - work[0] * position.step / self.steps)
        self.listener(
            Progress(
                epoch=position.epoch + 1,
                epochs=self.recipe.epochs,
                step=position.step,
                steps=self.steps,
                batch_loss=batch_loss,
                loss=float(meters.loss) / meters.images,
                accuracy=float(meters.correct) / meters.images,
                images=self.images,
                lr=lr,
                images_per_second=self.images_here / elapsed,
                seconds_left=left / self.pixels_here * elapsed,
            )
        )

    def finish_epoch(self) -> None:
        """Evaluate if it is time to, add to the history, save."""
        recipe, epoch = self.recipe, self.position.epoch
        sums = self.processes.sum(self.meters.loss, self.meters.correct, self.meters.images)
        lrs = [schedule(recipe, epoch * self.steps + s, recipe.epochs * self.steps)[0] for s in range(self.steps)]
        tested: dict[str, Any] = {}
        if (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs:
            with self.averaged():
                result = evaluate(self.model, self.test, bf16=self.bf16, stop=self.asked_to_stop)
            tested = {"test_loss": result.loss, "test_correct": result.correct, "test_images": result.images}
        self.position = Position(epoch + 1, 0)
        self.meters = Meters.zero(self.device)
        done = EpochRecord(
            epoch=epoch + 1,
            images=self.images,
            seconds=self.tick(),
            train_loss=sums[0] / sums[2],
            train_accuracy=sums[1] / sums[2],
            max_lr=max(lrs),
            size=recipe.crop_size(epoch, self.train.side),
            lr=lrs[-1],
            **tested,
        )
        self.history.append(done)
        if self.checkpoint_epochs or epoch + 1 == recipe.epochs:
            self.save()
        elif self.processes.first:
            write_history(self.folder, self.history)
        if self.listener is not None:
            self.listener(done)

    def tick(self) -> float:
        """Seconds of work so far, in all sessions of this run."""
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        return self.seconds

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the network has the averaged weights, if there are any."""
        return self.averager.applied(self.model) if self.averager is not None else contextlib.nullcontext()

    def save(self) -> None:
        """Write the state, unless the weights are no longer numbers; every process takes part."""
        if not all(bool(value.isfinite().all()) for value in self.model.state_dict().values()):
            raise self.diverged("the weights are no longer finite")
        sums = self.processes.sum(self.meters.loss, self.meters.correct, self.meters.images)
        if self.processes.first:
            tensors = {"model": dict(self.model.state_dict()), "optimizer": optimizer_tensors(self.optimizer)}
            if self.averager is not None:
                tensors["average"] = self.averager.average
            records = [vars(entry) for entry in self.history]
            state = State(self.key.to_dict(), self.position, tensors, sums, self.images, self.tick(), records)
            save_state(self.folder / STATE_FILE, state)
            write_history(self.folder, self.history)
        self.saved = time.monotonic()

    def load(self) -> None:
        """Restore what ``save`` wrote.

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
        if self.processes.first:
            self.meters = Meters.of(*state.sums, device=self.device)
            write_history(self.folder, self.history)

    def diverged(self, what: str) -> DivergedError:
        """The sentence that ends a run that cannot go on."""
        path = self.folder / STATE_FILE
        kept = f"the last good state is {path}" if path.exists() else "nothing had been saved yet"
        where = f"epoch {self.position.epoch + 1}, step {self.position.step}"
        return DivergedError(
            f"training diverged: {what} ({where}); start again in another folder with a lower lr or a longer warmup; "
            f"{kept}"
        )
