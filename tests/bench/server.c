/* server PORT FIRST COUNT [PERIOD_US CORE FROM TO]: the yardstick. COUNT holding registers from FIRST on 127.0.0.1:PORT,
   as in the many-clients example of libmodbus: select(), modbus_receive(), modbus_reply(). With a period a thread of
   SCHED_FIFO 80, where that is permitted, copies two registers FROM one address TO another in every scan: the least that
   a controller can do. Ends with its parent. */
#define _GNU_SOURCE
#include <errno.h>
#include <modbus.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

#define MOST_CLIENTS 64

static modbus_mapping_t *map;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char **scan;

static void *scanned(void *unused)
{
    cpu_set_t core;
    CPU_ZERO(&core);
    CPU_SET(atoi(scan[1]), &core);
    pthread_setaffinity_np(pthread_self(), sizeof core, &core);
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &(struct sched_param){.sched_priority = 80});
    uint16_t *from = map->tab_registers + atoi(scan[2]) - map->start_registers;
    uint16_t *to = map->tab_registers + atoi(scan[3]) - map->start_registers;
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (;;) {
        due.tv_nsec += atol(scan[0]) * 1000;
        due.tv_sec += due.tv_nsec / 1000000000;
        due.tv_nsec %= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        pthread_mutex_lock(&turn);
        to[0] = from[0];
        to[1] = from[1];
        pthread_mutex_unlock(&turn);
    }
    return unused;
}

static void serve(modbus_t *ctx, int fd, fd_set *open)
{
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    modbus_set_socket(ctx, fd);
    int length = modbus_receive(ctx, query);
    if (length > 0) {
        if (*scan)
            pthread_mutex_lock(&turn);
        modbus_reply(ctx, query, length, map);
        if (*scan)
            pthread_mutex_unlock(&turn);
    } else if (length == -1) {
        close(fd);
        FD_CLR(fd, open);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 8)
        return fprintf(stderr, "usage: server PORT FIRST COUNT [PERIOD_US CORE FROM TO]\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    map = modbus_mapping_new_start_address(0, 0, 0, 0, atoi(argv[2]), atoi(argv[3]), 0, 0);
    int listener = ctx && map ? modbus_tcp_listen(ctx, MOST_CLIENTS) : -1;
    if (listener == -1)
        return fprintf(stderr, "server: %s\n", modbus_strerror(errno)), 1;
    pthread_t thread;
    scan = argv + 4;
    if (argc == 8 && pthread_create(&thread, NULL, scanned, NULL))
        return fprintf(stderr, "server: no thread\n"), 1;
    fd_set open, ready;
    int top = listener;
    FD_ZERO(&open);
    FD_SET(listener, &open);
    for (;;) {
        ready = open;
        if (select(top + 1, &ready, NULL, NULL, NULL) == -1)
            return perror("server: select"), 1;
        for (int fd = 0; fd <= top; fd++) {
            if (!FD_ISSET(fd, &ready))
                continue;
            if (fd != listener) {
                serve(ctx, fd, &open);
                continue;
            }
            int client = modbus_tcp_accept(ctx, &listener);
            if (client == -1)
                continue;
            FD_SET(client, &open);
            top = client > top ? client : top;
        }
    }
}
