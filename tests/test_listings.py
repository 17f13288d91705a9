"""Published PyTorch listings with only the imports replaced, repaired where they are wrong as printed.

The printed mistakes stay here too: each must give an error or a warning that says what to do.
"""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import fastnn
import fastnn.nn as nn
import fastnn.nn.functional as F
import fastnn.optim as optim
from fastnn.utils.data import DataLoader, TensorDataset


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    return train_test_split(images, data.target, test_size=0.25, stratify=data.target, random_state=0)


# ---- a convolutional network for 32 x 32 images ----------------------------------------------------


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class PrintedLeNet(LeNet):
    """As printed: no pooling after the first convolution."""

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def test_lenet_has_its_size_and_learns_padded_digits(digits):
    fastnn.manual_seed(0)
    net = LeNet()
    assert count(net) == 61_706
    train_x, test_x, train_y, test_y = digits
    pad = (12, 12, 12, 12)
    loader = DataLoader(
        TensorDataset(F.pad(fastnn.from_numpy(train_x), pad), fastnn.from_numpy(train_y)), 64, shuffle=True
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(8):
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
    with fastnn.no_grad():
        outputs = net(F.pad(fastnn.from_numpy(test_x), pad))
    assert tuple(outputs.shape) == (450, 10)
    assert (outputs.argmax(1).numpy() == test_y).mean() > 0.85


def test_printed_lenet_fails_clearly_on_its_own_image_size():
    with pytest.raises((ValueError, RuntimeError), match=r"186624[\s\S]*400|400[\s\S]*186624"):
        PrintedLeNet()(fastnn.randn(1, 1, 224, 224))


def test_printed_lenet_on_28_pixels_gives_too_many_rows_and_the_loss_says_so():
    outputs = PrintedLeNet()(fastnn.randn(8, 1, 28, 28))
    assert tuple(outputs.shape) == (32, 10)
    with pytest.raises(ValueError, match=r"32[\s\S]*8"):
        F.cross_entropy(outputs, fastnn.zeros(8, dtype=fastnn.int64))


def test_summary_warns_when_the_batch_dimension_changes():
    with pytest.warns(UserWarning, match=r"batch dimension changed.*fc1 \(Linear\) gave 8 rows for 2 samples"):
        fastnn.summary(PrintedLeNet(), (1, 28, 28))


# ---- a multilayer perceptron with a sigmoid and the squared error ----------------------------------


class MLP(nn.Module):
    def __init__(self, n_inputs=1000):
        super().__init__()
        self.fc1 = nn.Linear(n_inputs, 500)
        self.fc2 = nn.Linear(500, 250)
        self.fc3 = nn.Linear(250, 100)
        self.fc4 = nn.Linear(100, 1)

    def forward(self, x):
        x = fastnn.relu(self.fc1(x))
        x = fastnn.relu(self.fc2(x))
        x = fastnn.relu(self.fc3(x))
        return fastnn.sigmoid(self.fc4(x))


def test_mlp_has_its_size_and_comes_close_to_logistic_regression():
    fastnn.manual_seed(0)
    assert count(MLP()) == 650_951
    x, y = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    scaler = StandardScaler().fit(train_x)
    train_x, test_x = (scaler.transform(v).astype(np.float32) for v in (train_x, test_x))
    model = MLP(30)
    criterion = nn.MSELoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    inputs, targets = fastnn.from_numpy(train_x), fastnn.from_numpy(train_y.astype(np.float32)[:, None])
    for _ in range(60):
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with fastnn.no_grad():
        accuracy = ((model(fastnn.from_numpy(test_x)).numpy()[:, 0] > 0.5) == test_y).mean()
    baseline = LogisticRegression(max_iter=1000).fit(train_x, train_y).score(test_x, test_y)
    assert accuracy >= baseline - 0.02


def test_mlp_targets_without_their_column_raise():
    outputs = MLP(30)(fastnn.randn(16, 30))
    with pytest.raises(ValueError, match=r"\(16, 1\)[\s\S]*\(16,\)"):
        nn.MSELoss()(outputs, fastnn.zeros(16))


# ---- a perceptron for images, with and without a softmax too many ----------------------------------


class Net(nn.Module):
    def __init__(self, n_inputs=784, softmax=False):
        super().__init__()
        self.n_inputs, self.softmax = n_inputs, softmax
        self.fc1 = nn.Linear(n_inputs, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = x.view(-1, self.n_inputs)
        x = F.relu(self.fc1(x))
        x = self.fc2(x)
        return F.softmax(x, dim=1) if self.softmax else x


def trained(net, digits):
    """The last epoch's mean loss and the held-out accuracy, with the listing's own loop at lr 0.1."""
    train_x, test_x, train_y, test_y = digits
    trainloader = DataLoader(TensorDataset(fastnn.from_numpy(train_x), fastnn.from_numpy(train_y)), 32, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    for _ in range(10):
        running_loss = 0.0
        for data in trainloader:
            inputs, labels = data
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    with fastnn.no_grad():
        accuracy = (net(fastnn.from_numpy(test_x)).argmax(dim=1).numpy() == test_y).mean()
    return running_loss / len(trainloader), accuracy


def test_net_has_its_size_and_learns_with_logits(digits):
    fastnn.manual_seed(0)
    assert count(Net()) == 101_770
    loss, accuracy = trained(Net(64), digits)
    assert loss < 0.3
    assert accuracy > 0.93


@pytest.fixture
def set_debug():
    before = fastnn.is_debug()
    yield fastnn.set_debug
    fastnn.set_debug(before)


def test_net_with_a_second_softmax_cannot_get_below_its_bound(digits, set_debug):
    """-log of the softmax of a one-hot row of 10 is log(1 + 9 / e) = 1.461: the loss never gets lower."""
    fastnn.manual_seed(0)
    set_debug(False)
    loss, _ = trained(Net(64, softmax=True), digits)
    assert loss > 1.46
    set_debug(True)
    with pytest.warns(UserWarning, match="take the softmax out of the model"):
        F.cross_entropy(Net(64, softmax=True)(fastnn.randn(4, 64)), fastnn.zeros(4, dtype=fastnn.int64))


# ---- mistakes of the recurrent listing and of the shared loop --------------------------------------


def test_per_step_outputs_against_one_label_each_raise():
    with pytest.raises(ValueError, match=r"\(4, 7, 10\)[\s\S]*\(4,\)[\s\S]*last"):
        F.cross_entropy(fastnn.randn(4, 7, 10), fastnn.zeros(4, dtype=fastnn.int64))


def test_backward_twice_raises():
    loss = F.mse_loss(Net(4)(fastnn.randn(2, 4)), fastnn.zeros(2, 10))
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


def test_integer_labels_against_one_hot_outputs_raise():
    with pytest.raises((ValueError, TypeError), match=r"\(4, 10\)[\s\S]*\(4,\)"):
        F.kl_div(fastnn.randn(4, 10), fastnn.zeros(4))
