// read_write.js PORT ADDRESS COUNT WRITABLE: modbus-serial, as Node-RED uses it. Eight reads at once on one connection.
const Modbus = require("modbus-serial");
const [port, address, count, writable] = process.argv.slice(2).map(Number);
const client = new Modbus();

async function main() {
    await client.connectTCP("127.0.0.1", { port });
    client.setID(1);
    client.setTimeout(2000);
    const reads = await Promise.all(Array.from({ length: 8 }, (_, n) => client.readHoldingRegisters(address + n, 1)));
    console.log("at once", reads.map((r) => r.data[0]).join(" "));
    console.log("fc3", (await client.readHoldingRegisters(address, count)).data.join(" "));
    await client.writeRegisters(writable, [43]);
    console.log("fc16", (await client.readHoldingRegisters(writable, 1)).data.join(" "));
    await client.writeRegister(writable, 44);
    console.log("fc6", (await client.readHoldingRegisters(writable, 1)).data.join(" "));
    console.log("read-only", await client.writeRegister(address, 1).then(() => "taken", (e) => e.modbusCode));
    client.close(() => {});
}

main().catch((error) => { console.error(error.message); process.exit(1); });
