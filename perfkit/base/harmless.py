"""The server settings and pgbench commands that a configuration may hold, and those that perfkit refuses.

A configuration may come from a stranger. A server that perfkit starts with it must run no program, load no library,
open no file and listen to nobody because of a setting; and no setting may loosen what perfkit's guards rest on.
`search_path` may be set: statements of a workload need it. Guards look names up without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_PROGRAM = "the server runs programs or code because of it"
_LIBRARY = "the server loads libraries because of it"
_FILE = "it names files of the server"
_NETWORK = "it decides who reaches the server"
_LIMIT = "perfkit's own time limits rest on it ([limits] has those that can be chosen)"
_READ_ONLY = "perfkit's read-only transactions rest on it"
_IDENTITY = "it decides as whom perfkit acts"
_ROWS = "it decides which rows, rules and triggers count"
_READING = "perfkit and the server must read a statement alike"
_LOG = "perfkit reads the log of the server that it starts"

_REASONS: Mapping[str, str] = {
    _PROGRAM: "archive_command archive_cleanup_command restore_command recovery_end_command ssl_passphrase_command "
    "ssl_passphrase_command_supports_reload",
    _LIBRARY: "shared_preload_libraries session_preload_libraries local_preload_libraries archive_library "
    "dynamic_library_path extension_control_path jit_provider oauth_validator_libraries",
    _FILE: "data_directory config_file hba_file ident_file external_pid_file include include_dir include_if_exists "
    "stats_temp_directory promote_trigger_file krb_server_keyfile ssl_ca_file ssl_cert_file ssl_crl_dir ssl_crl_file "
    "ssl_dh_params_file ssl_key_file allow_in_place_tablespaces",
    _NETWORK: "listen_addresses port unix_socket_directories unix_socket_group unix_socket_permissions bonjour "
    "bonjour_name ssl primary_conninfo primary_slot_name password_encryption authentication_timeout",
    _LIMIT: "statement_timeout lock_timeout idle_in_transaction_session_timeout idle_session_timeout "
    "transaction_timeout client_connection_check_interval",
    _READ_ONLY: "default_transaction_read_only transaction_read_only transaction_isolation transaction_deferrable",
    _IDENTITY: "role session_authorization is_superuser application_name",
    _ROWS: "row_security session_replication_role event_triggers allow_system_table_mods lo_compat_privileges "
    "ignore_system_indexes zero_damaged_pages ignore_checksum_failure restrict_nonsystem_relation_kind",
    _READING: "standard_conforming_strings backslash_quote client_encoding quote_all_identifiers",
    _LOG: "logging_collector log_destination log_directory log_filename log_file_mode log_rotation_age "
    "log_rotation_size log_truncate_on_rotation event_source syslog_facility syslog_ident",
}
#: By name, in lower case: why perfkit refuses it.
REFUSED: Mapping[str, str] = {name: reason for reason, names in _REASONS.items() for name in names.split()}
# Settings of languages: `plperl.on_init` is Perl that runs when the language is loaded.
_LANGUAGES = re.compile(r"(?:plperlu?|plpython\w*|pltclu?|plv8)\.|.*\.(?:on_\w*init|start_proc)$")
#: Libraries of PostgreSQL itself, which it may load when it starts.
LIBRARIES = frozenset({"auto_explain", "pg_stat_statements"})
# A backslash, blanks or continued lines, and a word, as pgbench reads a meta command; `first` begins a line.
COMMAND = re.compile(r"(?P<first>^[ \t\r\f\v]*+)?\\(?:[ \t\r\f\v]|\\\r?\n)*+(?P<word>[^\s\\]+)", re.MULTILINE)
HARMLESS = frozenset(
    "set sleep if elif else endif gset aset startpipeline syncpipeline endpipeline".split()  # neither run nor read
)
PROGRAMS = frozenset({"shell", "setshell"})


def require_settable(settings: Mapping[str, str]) -> Mapping[str, str]:
    """Return the settings. Raise ValueError for a name or value that is none, and for one that perfkit refuses.

    >>> require_settable({"work_mem": "64MB"})
    {'work_mem': '64MB'}
    >>> require_settable({"Archive_Command": "true"})
    Traceback (most recent call last):
    ValueError: a setting other than 'Archive_Command': the server runs programs or code because of it
    """
    for name, value in settings.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of a PostgreSQL setting, not {name!r}")
        if _CONTROL.search(value):
            raise ValueError(f"a value in one line for setting {name!r}, not {value!r}")
        if reason := _refusal(name.lower(), value):
            raise ValueError(f"a setting other than {name!r}: {reason}")
    return settings


def _refusal(name: str, value: str) -> str:
    """Why perfkit refuses a setting; "" if it does not."""
    if name == "shared_preload_libraries" and {part.strip() for part in value.split(",")} <= LIBRARIES:
        return ""
    return _PROGRAM if _LANGUAGES.match(name) else REFUSED.get(name, "")


def require_harmless(text: str, where: object) -> None:
    r"""Raise ValueError naming the line of a meta command that is not known to be harmless: `\\shell` runs programs.

    The commands that run programs are refused in strings and comments too, so that no way of quoting hides one.
    """
    for found in COMMAND.finditer(text):
        word = found["word"].lower()
        if word in PROGRAMS or (found["first"] is not None and word not in HARMLESS):
            line = text.count("\n", 0, found.end("first") if found["first"] else found.start()) + 1
            why = "which runs programs" if word in PROGRAMS else "which is not among those that are harmless"
            expected = ", ".join(rf"\{name}" for name in sorted(HARMLESS))
            raise ValueError(rf"no \{word} at {where}:{line}, {why}; pgbench scripts may use {expected}")
