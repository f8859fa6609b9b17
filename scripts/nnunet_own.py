"""nnU-Net's own training and prediction, run by an interpreter in which ``nnunetv2`` is installed.

    nnunet_own.py train DATASET_ID CONFIGURATION FOLDS ITERATIONS
    nnunet_own.py predict MODEL_FOLDER DICOM_FOLDER OUT.npy

Nothing of this node is imported here, and this file is imported by nothing: scripts/nnunet_agreement.py and
scripts/bench_infer.py start it. `train` wants nnU-Net's three environment variables; `predict` prints one line of JSON:
seconds of each step and the peak of the resident set in bytes.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("nnUNet_compile", "0")
os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 - nnU-Net's own spelling


def train(dataset: int, configuration: str, folds: list[int], iterations: int) -> None:
    """Plan, preprocess and train for a few iterations; a small network by a planner told of few features."""
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, preprocess_dataset
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    folder = Path(nnUNet_preprocessed) / convert_id_to_dataset_name(dataset)
    if not (folder / "nnUNetPlans.json").exists():
        extract_fingerprints([dataset], num_processes=1)
        planner = ExperimentPlanner(dataset, gpu_memory_target_in_gb=1)
        planner.UNet_base_num_features = 8
        planner.UNet_max_features_2d = planner.UNet_max_features_3d = 64
        planner.plan_experiment()
    if not any(folder.glob(f"nnUNetPlans_{configuration}/*")):
        preprocess_dataset(dataset, configurations=(configuration,), num_processes=(1,))
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 - augment in this process
    for fold in folds:
        torch.manual_seed(fold)
        plans, description = load_json(str(folder / "nnUNetPlans.json")), load_json(str(folder / "dataset.json"))
        plans["continue_training"] = False
        trainer = nnUNetTrainer(plans, configuration, fold, description, device=torch.device("cpu"))
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, iterations, 1
        trainer.run_training()


def predict(model: Path, dicom: Path, out: Path) -> None:
    """Predict one DICOM series by nnU-Net's own predictor, handed SimpleITK's array: no NIfTI in between."""
    import numpy as np
    import SimpleITK
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    mirroring = os.environ.get("MIRRORING") == "1"
    predictor = nnUNetPredictor(0.5, True, mirroring, True, torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    spent, computed = {}, {}
    clock, used = time.perf_counter(), time.process_time()

    def step(name: str) -> None:
        nonlocal clock, used
        spent[name], computed[name] = time.perf_counter() - clock, time.process_time() - used
        clock, used = time.perf_counter(), time.process_time()

    image = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(dicom)))
    array, spacing = SimpleITK.GetArrayFromImage(image)[None].astype(np.float32), list(image.GetSpacing())[::-1]
    step("load")
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    prepared, _, properties = preprocessor.run_case_npy(
        array,
        None,
        {"spacing": spacing},
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    step("preprocess")
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(prepared)).cpu()
    step("model")
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, properties
    )
    step("export")
    np.save(out, labels)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": spent, "cpu_seconds": computed, "peak_bytes": int(peak.split()[1]) * 1024}))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(int(sys.argv[2]), sys.argv[3], [int(one) for one in sys.argv[4].split(",")], int(sys.argv[5]))
    else:
        predict(Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
