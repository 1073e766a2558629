"""Training data: images from standard files as uint8 tensors.

sources.py       data sets by name, their splits and labels; levels and pictures of pixels
batches.py       batches of training images
augmentation.py  what is random in training images: crops, flips, pixels of two levels
points.py        points from mixtures of Gaussians
binarise.py      images of two levels, in the ways that are reported
cifar.py         CIFAR-10, either version
idx.py           the IDX format of MNIST and its relatives
folder.py        a folder of image files, split and labelled by its sub-folders
file_images.py   images too large for memory, decoded when they are asked for
image_file.py    one image file as 8-bit pixels
"""
