//! CRIU's image format: magics, records, readers, writers, manifest. Makes no syscalls and never panics on any bytes.
#![forbid(unsafe_code)]
