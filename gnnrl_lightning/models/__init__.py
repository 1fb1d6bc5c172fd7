"""Networks: our CIFAR ResNets, torchvision's and timm's, with weights from anywhere."""
