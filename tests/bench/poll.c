/* poll PORT START_NS PERIOD_US ROUNDS <requests: a bare libmodbus client as a yardstick of a poller. Each line of
   standard input is "unit address count"; every round reads all of them one after the other, beginning at
   START_NS + n * PERIOD_US of CLOCK_MONOTONIC, and prints what it took in us. */
#include <errno.h>
#include <modbus.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST_REQUESTS 1024

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

int main(int argc, char **argv)
{
    static int request[MOST_REQUESTS][3];
    uint16_t registers[MODBUS_MAX_READ_REGISTERS];
    if (argc != 5)
        return fprintf(stderr, "usage: poll PORT START_NS PERIOD_US ROUNDS\n"), 2;
    int n = 0;
    while (n < MOST_REQUESTS && scanf("%d %d %d", &request[n][0], &request[n][1], &request[n][2]) == 3)
        n++;
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    if (!ctx || modbus_connect(ctx) == -1)
        return fprintf(stderr, "poll: %s\n", modbus_strerror(errno)), 1;
    int64_t due = atoll(argv[2]);
    for (int round = 0; round < atoi(argv[4]); round++, due += atoll(argv[3]) * 1000) {
        struct timespec at = {due / 1000000000, due % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        int64_t began = now_ns();
        for (int i = 0; i < n; i++) {
            modbus_set_slave(ctx, request[i][0]);
            if (modbus_read_registers(ctx, request[i][1], request[i][2], registers) != request[i][2])
                return fprintf(stderr, "poll: unit %d: %s\n", request[i][0], modbus_strerror(errno)), 1;
        }
        printf("%ld\n", (long)((now_ns() - began) / 1000));
    }
    modbus_close(ctx);
    modbus_free(ctx);
    return 0;
}
