"""Networks: torchvision's, timm's, the user's and the few that neither library has, with weights from anywhere."""
