"""Networks from the literature, as plain modules."""

from fastnn.models.keras_cnn import KerasCNN
from fastnn.models.lenet import LeNet5
from fastnn.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50, resnet101
