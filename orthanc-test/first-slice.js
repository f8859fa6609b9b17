// The viewer opens a segmentation on the first slice that has a voxel of it. This goes to the one that has most, once.
(() => {
  const voxels = image => {
    let count = 0;
    for (const value of image.voxelManager.getScalarData()) count += value > 0;
    return count;
  };
  const fullest = () => {
    const [segmentation] = window.cornerstoneTools?.segmentation.state.getSegmentations() ?? [];
    const ids = segmentation?.representationData.Labelmap?.imageIds ?? [];
    const images = ids.map(id => window.cornerstone.cache.getImage(id)).filter(Boolean);
    const counts = images.map(voxels);
    const most = Math.max(0, ...counts);
    return most ? images[counts.indexOf(most)].referencedImageId : null;
  };
  const timer = setInterval(() => {
    const wanted = fullest();
    const { activeViewportId } = window.services?.viewportGridService.getState() ?? {};
    const viewport = wanted && window.services.cornerstoneViewportService.getCornerstoneViewport(activeViewportId);
    const index = viewport?.getImageIds?.().indexOf(wanted) ?? -1;
    if (index < 0 || viewport.viewportStatus !== 'rendered') return;
    clearInterval(timer);
    viewport.setImageIdIndex(index);
  }, 500);
})();
