"""The convolutional network of TensorFlow's tutorial "Convolutional Neural Network (CNN)", for CIFAR-10 or digits."""

from fastnn import nn
from fastnn._C import Tensor
from fastnn.nn import functional as F
from fastnn.nn.fused import conv_activation


class KerasCNN(nn.Module):
    """(N, in_channels, S, S) -> (N, num_classes), S = ``image_size``: 32 with 3 channels, or 28 with 1.

    Convolutions 3x3 to 32, 64 and 64 channels, without padding; ReLU after each, 2x2 maximum pooling after the first
    two; then linear layers to 64 and to the classes: 122,570 parameters for (3, 32, 32) and 10 classes.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        last = ((image_size - 2) // 2 - 2) // 2 - 2
        if last < 1:
            raise ValueError(f"KerasCNN: images of at least 18 x 18 are expected, got image_size={image_size}")
        self.conv1 = nn.Conv2d(in_channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * last * last, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        x = self.pool(conv_activation(self.conv1, input, "relu"))
        x = self.pool(conv_activation(self.conv2, x, "relu"))
        x = conv_activation(self.conv3, x, "relu")
        y: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return y
