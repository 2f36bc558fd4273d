"""The server settings, pgbench commands and HTTP headers that perfkit refuses in a configuration.

A configuration may come from a stranger. No setting may make a server that perfkit starts run a program, load a
library, open a file or listen on the network, and no setting may weaken perfkit's guards. `search_path` is allowed
because statements of a workload need it; guards look names up without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CLIENT_HEADERS = re.compile(
    r"host|connection|content-length|transfer-encoding|te|trailer|upgrade|expect|keep-alive|proxy-.*|x-forwarded-host",
    re.IGNORECASE,
)

_PROGRAM = "the setting makes the server run programs or code"
_LIBRARY = "the setting makes the server load libraries"
_FILE = "the setting names files of the server"
_NETWORK = "the setting decides who can reach the server"
_LIMIT = "perfkit's own time limits depend on the setting (choose limits in [limits])"
_READ_ONLY = "perfkit's read-only transactions depend on the setting"
_IDENTITY = "the setting decides as which role perfkit acts"
_ROWS = "the setting decides which rows, rules and triggers apply"
_READING = "perfkit and the server must read a statement in the same way"
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
#: The reason for refusing a setting, by its name in lower case.
REFUSED: Mapping[str, str] = {name: reason for reason, names in _REASONS.items() for name in names.split()}
# Settings of procedural languages: `plperl.on_init` is Perl code that runs when the language is loaded.
_LANGUAGES = re.compile(r"(?:plperlu?|plpython\w*|pltclu?|plv8)\.|.*\.(?:on_\w*init|start_proc)$")
#: Libraries that come with PostgreSQL and that a server may load when it starts.
LIBRARIES = frozenset({"auto_explain", "pg_stat_statements"})
# A meta command as pgbench reads it: a backslash, blanks or continued lines, and a word. `first` matches at the start
# of a line.
COMMAND = re.compile(r"(?P<first>^[ \t\r\f\v]*+)?\\(?:[ \t\r\f\v]|\\\r?\n)*+(?P<word>[^\s\\]+)", re.MULTILINE)
# These commands neither run programs nor read files.
HARMLESS = frozenset("set sleep if elif else endif gset aset startpipeline syncpipeline endpipeline".split())
PROGRAMS = frozenset({"shell", "setshell"})


def require_settable(settings: Mapping[str, str]) -> Mapping[str, str]:
    """Return the settings. Raises ValueError for an invalid name or value, and for a setting that perfkit refuses.

    >>> require_settable({"work_mem": "64MB"})
    {'work_mem': '64MB'}
    >>> require_settable({"Archive_Command": "true"})
    Traceback (most recent call last):
    ValueError: a setting other than 'Archive_Command': the setting makes the server run programs or code
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
    """Return the reason for refusing a setting, or "" if the setting is allowed."""
    if name == "shared_preload_libraries" and {part.strip() for part in value.split(",")} <= LIBRARIES:
        return ""
    return _PROGRAM if _LANGUAGES.match(name) else REFUSED.get(name, "")


def require_harmless_commands(text: str, where: object) -> None:
    r"""Raise ValueError naming the line if a pgbench script has a command that is not known to be harmless.

    Commands that run programs (`\\shell`) are refused in strings and comments too, so that no quoting hides one.
    """
    for command in COMMAND.finditer(text):
        word = command["word"].lower()
        if word in PROGRAMS or (command["first"] is not None and word not in HARMLESS):
            line = text.count("\n", 0, command.end("first") if command["first"] else command.start()) + 1
            reason = "which runs programs" if word in PROGRAMS else "which is not known to be harmless"
            expected = ", ".join(rf"\{name}" for name in sorted(HARMLESS))
            raise ValueError(rf"no \{word} at {where}:{line}, {reason}; pgbench scripts may use {expected}")


def require_header(name: str, value: str) -> None:
    """Raise ValueError for a header that could redirect a request or split it into two."""
    if _CLIENT_HEADERS.fullmatch(name):
        raise ValueError(f"no header {name!r}: the client sets this header")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or re.search(r"[\r\n\0]", value):
        raise ValueError(f"header {name!r} of letters, digits, '_' and '-', with a value in one line")
