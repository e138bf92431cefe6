/* The daemon protocol of systemd, from C. Link with -lsd_daemon_capi. Each function returns a negated errno on failure. */
#ifndef SD_DAEMON_H
#define SD_DAEMON_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Log levels, to be put before a line on standard error: fprintf(stderr, SD_NOTICE "Hello\n"); */
#define SD_EMERG "<0>"
#define SD_ALERT "<1>"
#define SD_CRIT "<2>"
#define SD_ERR "<3>"
#define SD_WARNING "<4>"
#define SD_NOTICE "<5>"
#define SD_INFO "<6>"
#define SD_DEBUG "<7>"

/* The first passed descriptor. */
#define SD_LISTEN_FDS_START 3

/* How many descriptors were passed; close-on-exec is set on each. */
int sd_listen_fds(int unset_environment);

/* Questions: 1 yes, 0 no. A NULL path, a family, type or port of 0 and a negative `listening` stand for any. */
int sd_is_fifo(int fd, const char *path);
int sd_is_special(int fd, const char *path);
int sd_is_socket(int fd, int family, int type, int listening);
int sd_is_socket_inet(int fd, int family, int type, int listening, uint16_t port);
/* length 0: strlen(path). An abstract name starts with NUL and needs its length; "" asks for an unnamed socket. */
int sd_is_socket_unix(int fd, int type, int listening, const char *path, size_t length);
int sd_is_mq(int fd, const char *path);

/* Tells the service manager: 1 sent, 0 there is none. */
int sd_notify(int unset_environment, const char *state);
#if defined(__x86_64__)
int sd_notifyf(int unset_environment, const char *format, ...)
#if defined(__GNUC__)
        __attribute__((format(printf, 2, 3)))
#endif
        ;
#endif

/* 1: systemd runs this machine, 0: it does not. */
int sd_booted(void);

#ifdef __cplusplus
}
#endif
#endif
