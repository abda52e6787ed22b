/* answer PORT COUNT: the least that a server can do. Takes whatever comes on 127.0.0.1:PORT for a whole FC3 request of
   COUNT registers and answers zeros: one recv(), one send(), no check. Ends with its parent. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_CLIENTS 64
#define ADU_BYTES 260

static void watch(int poller, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void answer(int fd, int count)
{
    uint8_t request[ADU_BYTES], adu[ADU_BYTES] = {0};
    if (recv(fd, request, sizeof request, 0) <= 0) {
        close(fd);
        return;
    }
    memcpy(adu, request, 4);
    adu[5] = 3 + 2 * count;
    adu[6] = request[6];
    adu[7] = request[7];
    adu[8] = 2 * count;
    send(fd, adu, 9 + 2 * count, MSG_NOSIGNAL);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return fprintf(stderr, "usage: answer PORT COUNT\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct sockaddr_in where = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), count = atoi(argv[2]), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&where, sizeof where) || listen(listener, MOST_CLIENTS))
        return perror("answer"), 1;
    watch(poller, listener);
    for (;;) {
        struct epoll_event ready[MOST_CLIENTS];
        int found = epoll_wait(poller, ready, MOST_CLIENTS, -1);
        for (int i = 0; i < found; i++) {
            if (ready[i].data.fd != listener) {
                answer(ready[i].data.fd, count);
                continue;
            }
            int client = accept(listener, NULL, NULL);
            setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            watch(poller, client);
        }
    }
}
