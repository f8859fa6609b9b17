// Drives one headless Chromium with OHIF in it: a JSON order on each line of standard input, a JSON answer on each of
// standard output. Arguments: the folder of playwright-core, the browser's program.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [, , playwright, chromium] = process.argv;
const require = createRequire(import.meta.url);
const browser = await require(playwright).chromium.launch({
  executablePath: chromium,
  headless: true,
  // Without a GPU: WebGL in software, which OHIF needs. Containers run tests as root, where the sandbox cannot.
  args: [
    '--no-sandbox',
    '--use-gl=angle',
    '--use-angle=swiftshader',
    '--enable-unsafe-swiftshader',
    '--ignore-gpu-blocklist',
    '--disable-dev-shm-usage',
  ],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
const page = await context.newPage();

let complaints = [];
page.on('console', message => message.type() === 'error' && complaints.push(message.text()));
page.on('pageerror', error => complaints.push(`uncaught: ${error.message}`));
page.on('response', answer => answer.status() >= 400 && complaints.push(`HTTP ${answer.status()} ${answer.url()}`));

// Everything below runs in the page. The viewer keeps its state in window.services, .cornerstone, .cornerstoneTools.
const inPage = () => {
  const services = () => window.services;
  const tools = () => window.cornerstoneTools;
  const cache = () => window.cornerstone.cache;

  const viewports = () =>
    [...services().viewportGridService.getState().viewports.values()].map(shown => {
      const viewport = services().cornerstoneViewportService.getCornerstoneViewport(shown.viewportId);
      const box = document.querySelector(`[data-viewportid="${shown.viewportId}"]`)?.getBoundingClientRect();
      return {
        id: shown.viewportId,
        type: viewport?.type ?? null,
        slice: viewport?.getSliceIndex?.() ?? null,
        slices: viewport?.getNumberOfSlices?.() ?? null,
        status: viewport?.viewportStatus ?? null,
        image: instanceOf(viewport?.getCurrentImageId?.()),
        displaySets: shown.displaySetInstanceUIDs ?? [],
        box: box ? [box.x, box.y, box.width, box.height] : null,
      };
    });

  const instanceOf = id => /\/instances\/([0-9.]+)/.exec(id ?? '')?.[1] ?? null;

  // Image -> segment number -> [voxels, sum of their positions in the image, row by row from 0].
  // Overlapping segments lie in several layers, each of which numbers its own.
  const voxels = labelmap => {
    const found = {};
    const layers = labelmap.labelmaps ? Object.values(labelmap.labelmaps) : [labelmap];
    for (const layer of layers) {
      const volume = cache().getVolume(layer.volumeId ?? labelmap.volumeId ?? '');
      for (const id of layer.imageIds ?? labelmap.imageIds ?? volume?.imageIds ?? []) {
        const image = cache().getImage(id);
        if (image) countInto(found, instanceOf(image.referencedImageId), image, layer.labelToSegmentIndex);
      }
    }
    return found;
  };

  const countInto = (found, instance, image, stands) => {
    const values = image.voxelManager?.getScalarData?.() ?? image.getPixelData();
    for (let i = 0; i < values.length; i++) {
      if (!values[i]) continue;
      const counts = ((found[instance] ??= {})[stands ? stands[values[i]] : values[i]] ??= [0, 0]);
      counts[0] += 1;
      counts[1] += i;
    }
  };

  const segmentations = () =>
    tools().segmentation.state.getSegmentations().map(one => ({
      id: one.segmentationId,
      label: one.label,
      kinds: Object.keys(one.representationData),
      voxels: one.representationData.Labelmap ? voxels(one.representationData.Labelmap) : null,
      contours: one.representationData.Contour
        ? Object.fromEntries([...one.representationData.Contour.annotationUIDsMap].map(([n, uids]) => [n, uids.size]))
        : null,
      segments: Object.values(one.segments).map(segment => ({
        number: segment.segmentIndex,
        label: segment.label,
        colour: colour(one.segmentationId, segment.segmentIndex),
      })),
    }));

  const colour = (segmentation, segment) => {
    const shown = viewports()
      .map(viewport => {
        try {
          return tools().segmentation.config.color.getSegmentIndexColor(viewport.id, segmentation, segment);
        } catch {
          return null; // a viewport without this segmentation
        }
      })
      .find(Boolean);
    return shown ? [...shown].slice(0, 3) : null;
  };

  // What the Measurements panel lists; contours of a structure set are no measurements.
  const measurements = () =>
    services().measurementService.getMeasurements().map(one => ({
      tool: one.toolName,
      label: one.label,
      text: one.displayText,
      finding: one.finding?.text ?? one.finding?.CodeMeaning ?? null,
      instance: one.SOPInstanceUID,
    }));

  const annotations = () =>
    tools().annotation.state.getAllAnnotations().map(one => ({
      tool: one.metadata.toolName,
      image: instanceOf(one.metadata.referencedImageId),
      label: one.data?.label ?? null,
      drawn: Object.entries(one.data?.renderableData ?? {}).map(([shape, lines]) => ({
        shape,
        points: lines.flat().map(point => inImage(one.metadata.referencedImageId, point)),
      })),
    }));

  // (column, row) of a point in the patient; (0, 0) is the centre of the first pixel.
  const inImage = (id, point) => window.cornerstone.utilities.worldToImageCoords(id, point);

  // Volumes that are loaded: of the images, and of parametric maps.
  const volumes = () =>
    cache().getVolumes().filter(Boolean).map(volume => {
      const loaded = volume.loadStatus?.loaded ?? true;
      let [largest, sum] = [-Infinity, 0];
      for (const value of (loaded && volume.voxelManager.getCompleteScalarDataArray?.()) || []) {
        largest = Math.max(largest, value);
        sum += value;
      }
      return { id: volume.volumeId, map: /pmap/i.test(volume.volumeId), loaded, dimensions: [...volume.dimensions], largest, sum };
    });

  const displaySets = () =>
    services().displaySetService.getActiveDisplaySets().map(one => ({
      id: one.displaySetInstanceUID,
      series: one.SeriesInstanceUID,
      number: Number(one.SeriesNumber),
      modality: one.Modality,
      description: one.SeriesDescription ?? '',
      handler: one.SOPClassHandlerId?.split('.').pop() ?? null,
      unsupported: Boolean(one.unsupported),
      loaded: one.isLoaded ?? null,
      loading: one.loading ?? null,
      hydrated: one.isHydrated ?? null,
      frames: one.numImageFrames ?? one.images?.length ?? null,
      messages: one.messages?.messages?.map(message => message.id) ?? [],
      measurements: one.measurements?.map(m => ({
        loaded: m.loaded ?? null,
        id: m.TrackingUniqueIdentifier ?? null,
        labels: (m.labels ?? []).map(label => [label.label, label.value]),
        image: instanceOf(m.imageId),
      })) ?? null,
    }));

  window.lookIntoViewer = () => ({
    displaySets: displaySets(),
    viewports: viewports(),
    segmentations: segmentations(),
    volumes: volumes(),
    measurements: measurements(),
    annotations: annotations(),
  });
};

const orders = {
  // Opens an address; answers once the viewer has listed the study's series.
  async open({ url }) {
    complaints = [];
    await page.goto('about:blank');
    await page.goto(url, { waitUntil: 'domcontentloaded' });
    await page.waitForFunction(
      () => window.services?.displaySetService?.getActiveDisplaySets().length > 0, null, { timeout: 60000 },
    );
    await page.waitForSelector('[data-cy^="study-browser-thumbnail"]', { timeout: 60000 });
    await page.evaluate(inPage);
    return {};
  },
  // Shows a display set in the viewport, as a double click on its thumbnail does.
  async show({ displaySet }) {
    await page.locator(`[id="thumbnail-${displaySet}"]`).first().dblclick();
    return {};
  },
  async look() {
    return { ...(await page.evaluate(() => window.lookIntoViewer())), complaints };
  },
  // Goes to the slice in the active viewport that is this SOP Instance.
  async turn({ image }) {
    await page.evaluate(async wanted => {
      const { activeViewportId } = window.services.viewportGridService.getState();
      const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(activeViewportId);
      await viewport.setImageIdIndex(viewport.getImageIds().findIndex(id => id.includes(`/${wanted}/`)));
      viewport.render();
    }, image);
    return {};
  },
  // Where on the screen a point of the patient (LPS, mm) lies that is on the slice in the active viewport.
  async place({ point }) {
    return {
      place: await page.evaluate(world => {
        const { activeViewportId } = window.services.viewportGridService.getState();
        const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(activeViewportId);
        const box = viewport.canvas.getBoundingClientRect();
        const [x, y] = viewport.worldToCanvas(world);
        return [box.x + x, box.y + y];
      }, point),
    };
  },
  async click({ text }) {
    await page.getByText(text, { exact: true }).first().click({ timeout: 20000 });
    return {};
  },
  async text({ selector = 'body' }) {
    return { text: await page.locator(selector).first().innerText() };
  },
  async html({ selector = 'body' }) {
    return { text: await page.locator(selector).first().innerHTML() };
  },
  // The first bytes of the document (PDF) that is embedded in the page.
  async document() {
    return {
      start: await page.evaluate(async () => {
        const embedded = document.querySelector('object[data], iframe[src], embed[src]');
        const address = embedded?.data ?? embedded?.src;
        return address ? (await (await fetch(address)).text()).slice(0, 8) : null;
      }),
    };
  },
  async photograph({ path, selector }) {
    await (selector ? page.locator(selector).first() : page).screenshot({ path });
    return {};
  },
  async evaluate({ script }) {
    return { value: await page.evaluate(script) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { order, ...words } = JSON.parse(line);
  let answer;
  try {
    answer = { ok: true, ...(await orders[order](words)) };
  } catch (error) {
    answer = { ok: false, error: error.message, complaints };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
