"""What is accepted, offered and answered: presentation contexts and C-STORE statuses."""

from __future__ import annotations

import pytest
from pydicom.uid import (
    HTJ2K,
    AllTransferSyntaxes,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)
from pynetdicom.sop_class import Verification, uid_to_service_class

from pacs_ai.dicom import contexts, status
from pacs_ai.dicom.status import Category
from pacs_ai.errors import UserError


def test_every_storage_sop_class_and_verification_are_accepted_once():
    accepted = [context.abstract_syntax for context in contexts.acceptor_contexts()]
    assert accepted[0] == Verification
    assert len(accepted) == len(set(accepted)) == len(contexts.STORAGE_SOP_CLASSES) + 1
    assert CTImageStorage in accepted
    assert "1.2.840.10008.5.1.4.1.1.66.7" in accepted  # Label Map Segmentation Storage


def test_default_order_prefers_explicit_vr_and_leaves_out_deflated_big_endian_and_video():
    order = contexts.DEFAULT_TRANSFER_SYNTAXES
    assert order[:2] == (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    assert order[-1] == HTJ2K
    assert len(order) == 14
    assert {DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}.isdisjoint(order)
    assert not any("MPEG" in syntax.name or "HEVC" in syntax.name for syntax in AllTransferSyntaxes if syntax in order)
    assert all(
        tuple(context.transfer_syntax) == order
        for context in contexts.acceptor_contexts()
        if context.abstract_syntax != Verification
    )


def test_further_sop_classes_are_served_as_storage():
    private = "1.2.826.0.1.3680043.8.498.1"
    accepted = contexts.acceptor_contexts([ExplicitVRLittleEndian], [private, CTImageStorage, private])
    assert [context.abstract_syntax for context in accepted].count(private) == 1
    assert uid_to_service_class(private).__name__ == "StorageServiceClass"
    assert contexts.acceptor_contexts(further_sop_classes=[private])  # a second time, as a restart would


@pytest.mark.parametrize("wrong", ["CT", "1", "../etc/passwd", "1.2.840.10008.1.1.1.1.1." + "9" * 64])
def test_a_further_sop_class_that_is_no_uid_is_refused(wrong):
    with pytest.raises(UserError, match="no SOP Class UID"):
        contexts.acceptor_contexts(further_sop_classes=[wrong])


def test_a_further_sop_class_of_another_service_is_refused():
    with pytest.raises(UserError, match="no storage SOP class"):
        contexts.acceptor_contexts(further_sop_classes=["1.2.840.10008.5.1.4.1.2.1.1"])  # Patient Root FIND


def test_transfer_syntaxes_by_keyword_name_and_uid():
    names = [
        "JPEGLSLossless",
        " JPEG-LS Lossless Image Compression",
        JPEGLSLossless,
        "1.2.840.10008.1.2.4.112",
        "HTJ2K",
    ]
    assert contexts.transfer_syntaxes(names) == (JPEGLSLossless, "1.2.840.10008.1.2.4.112", HTJ2K)
    with pytest.raises(UserError, match=r'"JPEG" is no transfer syntax; give its keyword'):
        contexts.transfer_syntaxes(["JPEG"])
    with pytest.raises(UserError, match="no transfer syntax is listed"):
        contexts.transfer_syntaxes([])


def test_a_requestor_proposes_one_context_per_kind_and_verification():
    pairs = [(CTImageStorage, JPEGLSLossless), (CTImageStorage, JPEG2000Lossless), (CTImageStorage, JPEGLSLossless)]
    proposed = contexts.needed(pairs)
    assert [(context.abstract_syntax, tuple(context.transfer_syntax)) for context in proposed] == [
        (CTImageStorage, (JPEGLSLossless,)),
        (CTImageStorage, (JPEG2000Lossless,)),
        (Verification, (ImplicitVRLittleEndian,)),
    ]
    verification = (str(Verification), str(ImplicitVRLittleEndian))
    assert len(contexts.needed([verification])) == 1, "asked for, it is proposed once"
    many = [(sop_class_uid, ExplicitVRLittleEndian) for sop_class_uid in contexts.STORAGE_SOP_CLASSES]
    assert len(contexts.needed(many[:127])) == contexts.MAX_CONTEXTS
    with pytest.raises(UserError, match="128 different pairs"):
        contexts.needed(many[:128])


@pytest.mark.parametrize(
    ("code", "category"),
    [
        (status.SUCCESS, Category.SUCCESS),
        (status.DUPLICATE_SOP_INSTANCE, Category.SUCCESS),
        (status.COERCION, Category.WARNING),
        (status.ELEMENTS_DISCARDED, Category.WARNING),
        (status.DATA_SET_MISMATCH_WARNING, Category.WARNING),
        (0xB123, Category.WARNING),
        (status.OUT_OF_RESOURCES, Category.TRANSIENT),
        (0xA7FF, Category.TRANSIENT),
        (status.DATA_SET_MISMATCH, Category.PERMANENT),
        (0xA9FF, Category.PERMANENT),
        (0xA801, Category.PERMANENT),
        (status.CANNOT_UNDERSTAND, Category.PERMANENT),
        (0xCFFF, Category.PERMANENT),
        (status.SOP_CLASS_NOT_SUPPORTED, Category.PERMANENT),
        (status.PROCESSING_FAILURE, Category.PERMANENT),
        (status.INVALID_SOP_INSTANCE, Category.PERMANENT),
        (status.NOT_AUTHORIZED, Category.PERMANENT),
        (status.CANCEL, Category.CANCEL),
        (status.PENDING, Category.PENDING),
        (0x0001, Category.PERMANENT),
    ],
)
def test_statuses_say_what_to_do(code, category):
    assert status.classify(code) is category
    assert status.meaning(code).endswith(f"(0x{code:04X})")
