"""Our command sets and PDUs are those that pynetdicom reads and writes; no bytes of a peer raise the unforeseen."""

from __future__ import annotations

import contextlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.sop_class import Verification

from pacs_ai.deliver import command, pdus


def by_pynetdicom(message, **elements: object) -> bytes:
    """The command set of a DIMSE message as pynetdicom encodes it."""
    primitive = C_STORE() if "STORE" in message.__name__ else C_ECHO()
    for keyword, value in elements.items():
        setattr(primitive, keyword, value)
    found = message()
    found.primitive_to_message(primitive)
    return encode(found.command_set, is_implicit_vr=True, is_little_endian=True)


def test_c_store_request_is_pynetdicom_s():
    theirs = by_pynetdicom(
        C_STORE_RQ,
        MessageID=7,
        AffectedSOPClassUID=CTImageStorage,
        AffectedSOPInstanceUID="1.2.345",
        Priority=0,
        DataSet=BytesIO(b"some"),
    )
    assert command.c_store_request(7, CTImageStorage, "1.2.345") == theirs


def test_c_echo_request_is_pynetdicom_s():
    theirs = by_pynetdicom(C_ECHO_RQ, MessageID=1, AffectedSOPClassUID=Verification)
    assert command.c_echo_request(1, Verification) == theirs


def test_answers_are_read():
    encoded = by_pynetdicom(
        C_STORE_RSP,
        MessageIDBeingRespondedTo=9,
        AffectedSOPClassUID=CTImageStorage,
        AffectedSOPInstanceUID="1.2.345",
        Status=0xA700,
        ErrorComment="disk full",
    )
    assert command.decode(encoded) == command.Answer(
        command=0x8001,
        message_id=9,
        status=0xA700,
        sop_class_uid=str(CTImageStorage),
        sop_instance_uid="1.2.345",
        comment="disk full",
        has_data_set=False,
    )


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_value_error(raw):
    for read in (command.decode, pdus.read_acceptance, pdus.read_fragments):
        with contextlib.suppress(ValueError):
            read(raw)
    with contextlib.suppress(ValueError):
        pdus.read_acceptance(bytes(68) + raw)
    assert pdus.rejection_words(raw[:4], "CALLED", "CALLING")
    assert pdus.abort_words(raw[:4])


@given(st.binary(min_size=1, max_size=500), st.integers(1, 60).map(lambda half: 2 * half))
def test_fragments_are_what_pynetdicom_reads(content, fragment_length):
    raw = b"".join(pdus.data_pdus(5, 0, content, fragment_length, last=True))
    position, values = 0, []
    while position < len(raw):
        length = 6 + int.from_bytes(raw[position + 2 : position + 6], "big")
        pdu = P_DATA_TF()
        pdu.decode(raw[position : position + length])
        values += [(v.presentation_context_id, v.presentation_data_value) for v in pdu.presentation_data_value_items]
        assert pdus.read_fragments(raw[position + 6 : position + length])[0][2] == values[-1][1][1:]
        position += length
    assert {context_id for context_id, _ in values} == {5}
    assert b"".join(value[1:] for _, value in values) == content
    assert [value[0] for _, value in values] == [0] * (len(values) - 1) + [pdus.LAST_FRAGMENT]


def test_the_association_request_says_who_and_what():
    contexts = [
        build_context(CTImageStorage, ExplicitVRLittleEndian),
        build_context(Verification, ImplicitVRLittleEndian),
    ]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(pdus.associate_request("MAIN_PACS", "PACS_AI", contexts, 65_536))
    assert (pdu.called_ae_title, pdu.calling_ae_title) == ("MAIN_PACS", "PACS_AI")
    assert [(c.presentation_context_id, c.abstract_syntax, c.transfer_syntax) for c in pdu.presentation_context] == [
        (1, CTImageStorage, [ExplicitVRLittleEndian]),
        (3, Verification, [ImplicitVRLittleEndian]),
    ]
    assert pdu.user_information.maximum_length == 65_536
    assert pdu.user_information.implementation_version_name.startswith("PACS_AI")


def test_control_characters_of_a_comment_are_escaped():
    encoded = command.encode({command.COMMAND_FIELD: 0x8001, command.ERROR_COMMENT: "a\n\x1bb"})
    assert command.decode(encoded).comment == "a\\x0A\\x1Bb"
    assert decode(BytesIO(encoded), is_implicit_vr=True, is_little_endian=True).CommandField == 0x8001


@pytest.mark.parametrize(("result", "word"), [(1, "permanently"), (2, "for now"), (3, "undefined")])
def test_rejections_carry_their_numbers(result, word):
    words = pdus.rejection_words(bytes([0, result, 1, 7]), "MAIN_PACS", "PACS_AI")
    assert word in words
    assert '"MAIN_PACS"' in words
    assert f"{result}/1/7" in words
