/* server PORT FIRST COUNT: the yardstick. COUNT holding registers from FIRST on 127.0.0.1:PORT, as in the many-clients
   example of libmodbus: select(), modbus_receive(), modbus_reply(). Ends with its parent. */
#include <errno.h>
#include <modbus.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <unistd.h>

#define MOST_CLIENTS 64

static void serve(modbus_t *ctx, modbus_mapping_t *map, int fd, fd_set *open)
{
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    modbus_set_socket(ctx, fd);
    int length = modbus_receive(ctx, query);
    if (length > 0)
        modbus_reply(ctx, query, length, map);
    else if (length == -1) {
        close(fd);
        FD_CLR(fd, open);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return fprintf(stderr, "usage: server PORT FIRST COUNT\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    modbus_mapping_t *map = modbus_mapping_new_start_address(0, 0, 0, 0, atoi(argv[2]), atoi(argv[3]), 0, 0);
    int listener = ctx && map ? modbus_tcp_listen(ctx, MOST_CLIENTS) : -1;
    if (listener == -1)
        return fprintf(stderr, "server: %s\n", modbus_strerror(errno)), 1;
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
                serve(ctx, map, fd, &open);
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
