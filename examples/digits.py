"""Handwritten digits: a small convolutional network against logistic regression and 3 nearest neighbours.

    python examples/digits.py [--output FOLDER]      (build/digits unless told otherwise)

The data are scikit-learn's 1,797 real scans of 8 x 8 pixels. Each of 5 seeds splits them anew, 75 % to
train and 25 % held out, and every method sees the same splits. Ends with status 1 if the network
does not beat both baselines or if the saved model does not predict exactly as before.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim
from fastnn.utils.data import DataLoader, TensorDataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEEDS = range(5)
EPOCHS = 15
BATCH = 64


class LeNet(nn.Module):
    """Convolutions, a pool, and two fully connected layers, sized for 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.3)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.dropout(x.flatten(1))
        return self.fc2(F.relu(self.fc1(x)))


@dataclass
class Split:
    """The images (N, 1, 8, 8) in [0, 1] and labels of one seed."""

    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def of(cls, images, labels, seed):
        return cls(*train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed))


def shifted(images, rng):
    """The batch moved by up to one pixel each way: a hand does not centre its digits."""
    row, column = rng.integers(0, 3, 2)
    return F.pad(images, (1, 1, 1, 1))[:, :, row : row + 8, column : column + 8]


def train(split, seed, bar):
    """A trained model, and the mean loss and held-out accuracy after each epoch."""
    fastnn.manual_seed(seed)
    rng = np.random.default_rng(seed)
    dataset = TensorDataset(fastnn.from_numpy(split.train_images), fastnn.from_numpy(split.train_labels))
    loader = DataLoader(dataset, BATCH, shuffle=True)
    model = LeNet()
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=EPOCHS * len(loader))
    history = []
    for _ in range(EPOCHS):
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(shifted(images, rng)), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(labels)
        accuracy = accuracy_score(split.test_labels, logits_of(model, split.test_images).argmax(1))
        history.append((total / len(dataset), accuracy))
        bar.set_postfix(seed=seed, loss=f"{history[-1][0]:.3f}", accuracy=f"{accuracy:.4f}")
        bar.update()
    return model, history


def logits_of(model, images):
    """The outputs for held-out images, as an array."""
    model.eval()
    with fastnn.no_grad():
        return model(fastnn.from_numpy(images)).numpy()


def baseline_predictions(split):
    """What logistic regression and 3 nearest neighbours predict, by name."""
    flat_train, flat_test = (x.reshape(len(x), -1) for x in (split.train_images, split.test_images))
    methods = {
        "logistic regression": LogisticRegression(max_iter=1000),
        "3 nearest neighbours": KNeighborsClassifier(3),
    }
    return {name: m.fit(flat_train, split.train_labels).predict(flat_test) for name, m in methods.items()}


def plot(histories, split, predicted, path):
    """The training curves of all seeds, and what the first model got wrong."""
    wrong = np.flatnonzero(predicted != split.test_labels)[:12]
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    loss_axis = left.subplots()
    accuracy_axis = loss_axis.twinx()
    epochs = range(1, EPOCHS + 1)
    for history in histories:
        losses, accuracies = zip(*history, strict=True)
        loss_axis.plot(epochs, losses, color="tab:blue", alpha=0.6)
        accuracy_axis.plot(epochs, accuracies, color="tab:orange", alpha=0.6)
    loss_axis.set(xlabel="epoch", ylabel="training loss (blue)")
    accuracy_axis.set(ylabel="held-out accuracy (orange)", ylim=(0.9, 1.0))
    right.suptitle(f"misclassified by the model of seed 0 ({(predicted != split.test_labels).sum()})")
    for axis, i in zip(np.ravel(right.subplots(2, 6)), [*wrong, *[None] * (12 - len(wrong))], strict=True):
        axis.axis("off")
        if i is not None:
            axis.imshow(split.test_images[i, 0], cmap="gray_r")
            axis.set_title(f"{split.test_labels[i]} as {predicted[i]}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def reloaded_equals(model, split, path):
    """Saves the model, loads it into a fresh one, and compares the held-out outputs bit for bit."""
    fastnn.save_model(model, path)
    fresh = LeNet()
    fastnn.load_model(fresh, path)
    return np.array_equal(logits_of(model, split.test_images), logits_of(fresh, split.test_images))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/digits"), help="folder of the model and the picture")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    fastnn.show_config()
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    splits = [Split.of(images, digits.target, seed) for seed in SEEDS]
    print(fastnn.summary(LeNet(), (1, 8, 8)))

    start = time.perf_counter()
    with tqdm(total=len(SEEDS) * EPOCHS, desc="training", unit="epoch") as bar:
        models, histories = zip(
            *(train(split, seed, bar) for seed, split in zip(SEEDS, splits, strict=True)), strict=True
        )
    print(f"{len(SEEDS)} models of {EPOCHS} epochs trained in {time.perf_counter() - start:.1f} s\n")

    network = [logits_of(model, split.test_images).argmax(1) for model, split in zip(models, splits, strict=True)]
    predictions = [{"fastnn CNN": own, **baseline_predictions(s)} for own, s in zip(network, splits, strict=True)]
    means = {}
    print(f"held-out accuracy, {len(SEEDS)} splits of {len(splits[0].test_labels)} scans")
    for name in predictions[0]:
        scores = [accuracy_score(s.test_labels, p[name]) for s, p in zip(splits, predictions, strict=True)]
        means[name] = np.mean(scores)
        print(f"  {name:<22} {100 * means[name]:6.2f} % +- {100 * np.std(scores):.2f}")

    labels, pooled = np.concatenate([s.test_labels for s in splits]), np.concatenate(network)
    print("\nfastnn CNN, held-out scans of all splits together")
    print(classification_report(labels, pooled, digits=4))
    print("confusion matrix: rows are the true digits, columns the predicted ones")
    print(confusion_matrix(labels, pooled), "\n")

    saved = output / "lenet.safetensors"
    equal = reloaded_equals(models[0], splits[0], saved)
    print(f"saved to {saved}; predictions after loading are {'bit-equal' if equal else 'DIFFERENT'}")
    plot(histories, splits[0], network[0], output / "training.png")
    print(f"training curves and misclassified digits: {output / 'training.png'}")

    best = max(value for name, value in means.items() if name != "fastnn CNN")
    if not equal or means["fastnn CNN"] <= best:
        sys.exit("FAILED: the network must beat both baselines and predict the same after loading")


if __name__ == "__main__":
    main()
