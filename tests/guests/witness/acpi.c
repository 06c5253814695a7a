// Finds the processors and the power-management block in the firmware's ACPI tables, and keeps sums of every page the
// tables and the BIOS left, 0xfc000000 on Xen among them.
#include "witness.h"

struct area { u64 at; u64 sum; };
#define AREAS_MAX 128
#define XEN_ACPI 0xfc000000
#define XEN_ACPI_PAGES 11
static struct area areas[AREAS_MAX];
static u32 area_count;

static u32 word(u64 at) { return *(volatile u32 *)at; }
static u8 byte(u64 at) { return *(volatile u8 *)at; }
static u16 half(u64 at) { return *(volatile u16 *)at; }
static bool signature(u64 at, const char *name) {
    for (u32 i = 0; name[i]; i++)
        if (byte(at + i) != (u8)name[i])
            return false;
    return true;
}

static void read_madt(u32 madt) {
    for (u32 at = madt + 44; at < madt + word(madt + 4); at += byte(at + 1)) {
        if (byte(at) == 0 && word(at + 4) & 1 && machine.id_count < CPUS_MAX)
            machine.lapic_ids[machine.id_count++] = byte(at + 3);
        if (byte(at + 1) < 2)
            break;
    }
}
static void read_fadt(u32 fadt) {
    machine.pm_event = half(fadt + 56);
    machine.pm_control = half(fadt + 64);
    machine.pm_timer = half(fadt + 76);
    machine.gpe0 = half(fadt + 80);
    machine.gpe0_length = byte(fadt + 92) <= 8 ? byte(fadt + 92) : 0;
    machine.dsdt = word(fadt + 40);
}
static u64 find_rsdp(void) {
    for (u64 at = 0xe0000; at < 0x100000; at += 16)
        if (signature(at, "RSD PTR "))
            return at;
    u64 ebda = (u64)half(0x40e) << 4;
    for (u64 at = ebda; ebda && at < ebda + 0x400; at += 16)
        if (signature(at, "RSD PTR "))
            return at;
    return 0;
}
void find_acpi(void) {
    u64 rsdp = find_rsdp();
    if (rsdp) {
        machine.rsdt = word(rsdp + 16);
        for (u32 at = machine.rsdt + 36; at < machine.rsdt + word(machine.rsdt + 4); at += 4) {
            if (signature(word(at), "APIC"))
                read_madt(word(at));
            if (signature(word(at), "FACP"))
                read_fadt(word(at));
        }
    }
    for (u32 id = 0; machine.id_count == 0 && id < CPUS_MAX; id++)
        machine.lapic_ids[id] = id;
    if (!machine.id_count)
        machine.id_count = CPUS_MAX;
    if (!machine.pm_timer) {                   // PIIX4 at 00:01.3
        out32(0xcf8, 0x80000b40);
        machine.pm_timer = (in32(0xcfc) & 0xffc0) + 8;
    }
}

// ---------------------------------------------------------------- pages that must stay
static u64 sum(u64 page) {
    u64 s = 0;
    for (u32 i = 0; i < 512; i++)
        s = (s ^ ((volatile u64 *)page)[i]) * 0x100000001b3 + i;
    return s;
}
static void watch(u64 page) {
    for (u32 i = 0; i < area_count; i++)
        if (areas[i].at == page)
            return;
    if (area_count < AREAS_MAX)
        areas[area_count++].at = page;
}
static void watch_table(u64 table) {
    for (u64 page = table & ~0xfffull; page < table + word(table + 4) && word(table + 4) < 0x40000; page += 0x1000)
        watch(page);
}
static void firmware_set(struct cpu *c) {
    (void)c;
    for (u64 page = 0xc0000; page < 0x100000; page += 0x1000)
        watch(page);
    if (machine.rsdt) {
        watch_table(machine.rsdt);
        for (u32 at = machine.rsdt + 36; at < machine.rsdt + word(machine.rsdt + 4); at += 4)
            watch_table(word(at));
        if (machine.dsdt)
            watch_table(machine.dsdt);
    }
    if (machine.xen)
        for (u32 i = 0; i < XEN_ACPI_PAGES; i++)
            watch(XEN_ACPI + 0x1000 * i);
    for (u32 i = 0; i < area_count; i++)
        areas[i].sum = sum(areas[i].at);
}
static void firmware_check(struct cpu *c) {
    (void)c;
    for (u32 i = 0; i < area_count; i++)
        check(areas[i].at >= XEN_ACPI ? "acpi_page" : areas[i].at < BODY ? "bios_page" : "table_page", areas[i].at >> 12,
              sum(areas[i].at), areas[i].sum);
}
static void firmware_spoil(struct cpu *c) {
    (void)c;
    for (u32 i = 0; i < area_count; i++)
        if (areas[i].at >= BODY)
            *(volatile u64 *)(areas[i].at + 0x800) ^= 1;
}
SUBJECT(firmware, false, firmware_set, firmware_check, firmware_spoil);
