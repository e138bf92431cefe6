//! systemd's daemon protocol, stand-alone: socket activation, notification, watchdog, log-level prefixes.
