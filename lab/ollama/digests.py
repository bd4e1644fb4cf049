"""The SHA-256 of each catalogue model's whole file, by that of its header; see catalogue.py."""

from __future__ import annotations

DIGESTS: dict[str, tuple[int, str]] = {
    # llama3.2:3b
    "01e656f1cc941f3a8cea3d7e8fde6b71434c6c63015b20ad788ea83b720b7ab3": (
        2011556896,
        "sha256:352af8537a2f151bd67d713a08a21f950d8789f2d701239c45c8607587c28da9",
    ),
    # llama3.1:8b
    "a4220a0f10ee7a4b6aa0c426d081949e5ef44fd36a9bb8057838caf885b530c5": (
        4912917664,
        "sha256:8a79745a63d1ec57337b44d40abc835ae04248b53ef172a2704083b6844752f2",
    ),
    # llama3.1:70b
    "fbba9367b0803e24166139f771c18fd0c264da9c6c133118adf223f21cda7604": (
        42512576928,
        "sha256:c3a0c008d7ee2e865d891e4100345c1d4cd1a1d5bacc1f1eb402fa533d90abf3",
    ),
    # mistral:7b
    "9fb260f1e5dbba367974b1ff692fc576426baf209a0e44e0be91b7c62b92d033": (
        4372073344,
        "sha256:12ffe7fee61d9f4e8234184950822fb70c5f20b2a716746634606e4850ff90d5",
    ),
    # qwen2.5:0.5b
    "e00804bdaac348758b0890ccac582e4655d99f81eccdd0acb8e2bfac6336e4b0": (
        391878208,
        "sha256:739493db84264dfefa019964e835e0ecf6e0599fd8cdf75dcee648e9f48838a7",
    ),
    # qwen2.5:7b
    "3864002f44c674963aecf8f64d25921594647897e3e0944b5a8f7b52dbaf1c53": (
        4677141312,
        "sha256:9089863c6433317c5ee766e4ca1dd26e51c0ea416fdbb68d52ee93131fc76ee9",
    ),
    # qwen2.5:32b
    "ccc26ae09fc8daf8b2990dee4b31994f32aa5187b3e95153dd262fb715d457b1": (
        19845403648,
        "sha256:d79c2d79a1a7686bd72b4a72b8d4ad8809065b4d3af9554c3bad80e85df10c9a",
    ),
    # deepseek-r1:32b
    "6f0f1f05d621c92dc37b7cd77e85e729ef82636b15ee168472278e7ced2dc2c2": (
        19845403648,
        "sha256:ae2586dad22c31d5c4e471db2d01ed8260028494c2b66edb16ddd3b4c31106a9",
    ),
    # gemma3:4b
    "b5efcb3909e999040ec3d21ce4fe60badcd66766348affd01be0363ee453714b": (
        3322853344,
        "sha256:c381fd59543398d1f1d25fab89daad5f7ed7d3fafbb7ab12a1bee6086d4c8bbd",
    ),
    # gpt-oss:20b
    "f8ca6b16cc9f70f3e2b6a6b7692a9a8d96f726c78cb3ca3e942cbff6a80a9c63": (
        13775233056,
        "sha256:2eb675fbcb7a1a21ad4ba5240188c56a27f367f12c15c69a2fe2222c1e0cdcd2",
    ),
    # phi4:14b
    "7fa807a653d864c07097916473c58b074d893e2aa79fa2f2aa005987aaf0a37d": (
        9049575424,
        "sha256:78b27141f0a16e673a2ac6a646e156edbae464cc4dfa43c176cd612588214760",
    ),
    # nomic-embed-text:latest
    "ec2d8d486412cbfe8d553ba0bf62ba9b03f9a8fbbaf23c22212181e042c7d0c0": (
        273542752,
        "sha256:fc43a50c89529902f1fff2c8f90f552ba6c406cf864dbfaeb51e6e5e89630976",
    ),
}
