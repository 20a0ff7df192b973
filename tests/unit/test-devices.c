/* SPDX-License-Identifier: Apache-2.0 */
/* Devices that keep a guest where it is, in the words of QEMU's monitor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "qemu/devices.h"

/* As 7.2, 10.0 and 11.1 say it. */
static const char ordinary_tree[] = "bus: main-system-bus\n"
                                    "  type System\n"
                                    "  dev: hpet, id \"\"\n"
                                    "    gpio-in \"\" 2\n"
                                    "  dev: q35-pcihost, id \"\"\n"
                                    "    bus: pcie.0\n"
                                    "      type PCIE\n"
                                    "      dev: virtio-net-pci, id \"net\"\n"
                                    "        netdev = \"vfio-net\"\n"
                                    "        bus: virtio-bus\n"
                                    "          dev: virtio-net-device, id \"\"\n"
                                    "      dev: vhost-vsock-pci, id \"vsock\"\n";
static const char ordinary_network[] =
        "net: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02\n"
        " \\ vhost-user: index=0,type=tap,ifname=tap0,script=no\n";
static const char vfio_tree[] = "      dev: ICH9-LPC, id \"\"\n"
                                "      dev: vfio-pci, id \"hostdev0\"\n"
                                "        host = \"0000:3b:00.0\"\n";
static const char user_tree[] = "      dev: vhost-user-blk-pci, id \"\"\n"
                                "          dev: vhost-user-blk, id \"\"\n"
                                "      dev: vhost-vdpa-device-pci, id \"vdpa0\"\n";
static const char user_network[] =
        "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:02\n"
        " \\ up0: index=0,type=vhost-user,chardev=c0\n"
        "lone: index=1,type=vhost-vdpa,vhostdev=/dev/vhost-vdpa-0\n";

static void expect(const char *tree, const char *network, enum device_kind kind, const char *type,
                   const char *id)
{
	struct device d;

	assert_true(devices_find(tree, network, kind, &d));
	assert_string_equal(d.type, type);
	assert_string_equal(d.id, id);
}

static void test_ordinary_devices_are_none_of_them(void **state)
{
	struct device d;

	(void)state;
	for (int kind = 0; kind < DEVICE_KINDS; kind++) {
		assert_false(
		        devices_find(ordinary_tree, ordinary_network, (enum device_kind)kind, &d));
		assert_false(devices_find("", "", (enum device_kind)kind, &d));
	}
}

static void test_devices_are_found_with_type_and_id(void **state)
{
	(void)state;
	expect(vfio_tree, "", DEVICE_VFIO, "vfio-pci", "hostdev0");
	expect(user_tree, "", DEVICE_VHOST_USER, "vhost-user-blk-pci", "");
	expect(user_tree, "", DEVICE_VDPA, "vhost-vdpa-device-pci", "vdpa0");
}

static void test_network_backends_are_found(void **state)
{
	(void)state;
	expect(ordinary_tree, user_network, DEVICE_VHOST_USER, "vhost-user", "up0");
	expect(ordinary_tree, user_network, DEVICE_VDPA, "vhost-vdpa", "lone");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ordinary_devices_are_none_of_them),
		cmocka_unit_test(test_devices_are_found_with_type_and_id),
		cmocka_unit_test(test_network_backends_are_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
