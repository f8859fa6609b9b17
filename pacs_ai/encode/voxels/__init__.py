"""Objects that hold a value for each voxel: segmentations, maps, derived images."""
