"""LeNet-5. LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition"."""

from fastnn import nn
from fastnn._C import Tensor
from fastnn.nn import functional as F
from fastnn.nn.fused import conv_activation


class LeNet5(nn.Module):
    """(N, 1, 28, 28) -> (N, num_classes): 61,706 parameters for 10 classes.

    Two convolutions 5x5, each with ReLU and 2x2 maximum pooling, and three linear layers. The first convolution pads
    28 x 28 images to the 32 x 32 of the paper, whose sigmoids, trained pooling and partial connections are left out.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        x = self.pool(conv_activation(self.conv1, input, "relu"))
        x = self.pool(conv_activation(self.conv2, x, "relu"))
        x = F.relu(self.fc1(x.flatten(1)))
        y: Tensor = self.fc3(F.relu(self.fc2(x)))
        return y
