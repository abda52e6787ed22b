/* read_write PORT ADDRESS COUNT WRITABLE: a libmodbus client. Prints COUNT registers from ADDRESS by FC3 and FC4, what
   FC16 and FC23 to WRITABLE leave behind, and the errors of a read-only write and an illegal function. */
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>

static void row(const char *what, int rc, const uint16_t *registers)
{
    printf("%s %d", what, rc);
    if (rc < 0)
        printf(" %s", modbus_strerror(errno));
    for (int i = 0; i < rc; i++)
        printf(" %u", registers[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    uint16_t got[125], put[1];
    uint8_t bits[8];
    if (argc != 5)
        return 2;
    int address = atoi(argv[2]), count = atoi(argv[3]), writable = atoi(argv[4]);
    modbus_t *m = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
    if (!m || modbus_set_slave(m, 1) || modbus_connect(m))
        return 1;
    row("fc3", modbus_read_registers(m, address, count, got), got);
    row("fc4", modbus_read_input_registers(m, address, count, got), got);
    put[0] = 41;
    row("fc16", modbus_write_registers(m, writable, 1, put), put);
    put[0] = 42;
    row("fc23", modbus_write_and_read_registers(m, writable, 1, put, writable, 1, got), got);
    row("read-only", modbus_write_register(m, address, 1), put);
    row("coils", modbus_read_bits(m, 0, 8, bits), got);
    modbus_close(m);
    modbus_free(m);
    return 0;
}
