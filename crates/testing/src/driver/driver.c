/* Stands in for NVIDIA's driver: `libcuda.so.1` and `libnvidia-ml.so.1` in one. What it says is in the environment:
   STAND_IN_CUDA (13000), STAND_IN_CARDS (1), STAND_IN_CAPABILITY (90), STAND_IN_INIT (0, what cuInit returns),
   STAND_IN_LINK (nvlink, or the number of a PCIe topology).
   CUDA_VISIBLE_DEVICES hides cards as the real one does: numbers, up to the first that no card has. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

static int visible[16];

static int count_cards(void) {
  int cards = setting("STAND_IN_CARDS", 1);
  const char *text = getenv("CUDA_VISIBLE_DEVICES");
  int count = 0;
  if (!text) {
    for (; count < cards; count++) visible[count] = count;
    return count;
  }
  while (*text && count < 16) {
    char *end;
    long card = strtol(text, &end, 10);
    if (end == text || card < 0 || card >= cards) break;
    visible[count++] = (int)card;
    text = *end == ',' ? end + 1 : end;
  }
  return count;
}

int cuInit(unsigned flags) {
  (void)flags;
  int code = setting("STAND_IN_INIT", 0);
  return code ? code : count_cards() ? 0 : 100;
}

int cuDriverGetVersion(int *version) {
  *version = setting("STAND_IN_CUDA", 13000);
  return 0;
}

int cuDeviceGetCount(int *count) {
  *count = count_cards();
  return 0;
}

int cuDeviceGet(int *device, int index) {
  count_cards();
  *device = visible[index];
  return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
  snprintf(name, (size_t)size, "Stand-in %d", device);
  return 0;
}

int cuDeviceGetPCIBusId(char *bus, int size, int device) {
  snprintf(bus, (size_t)size, "0000:%02x:00.0", device + 1);
  return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
  (void)device;
  *bytes = (size_t)80 << 30;
  return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = setting("STAND_IN_CAPABILITY", 90);
  (void)device;
  if (attribute != 75 && attribute != 76) return 1;
  *value = attribute == 75 ? capability / 10 : capability % 10;
  return 0;
}

int cuDeviceCanAccessPeer(int *can, int device, int peer) {
  (void)device, (void)peer;
  *can = getenv("STAND_IN_LINK") != NULL;
  return 0;
}

int cuGetErrorString(int code, const char **text) {
  *text = code == 802 ? "system not yet initialized" : code == 999 ? "unknown error" : NULL;
  return *text ? 0 : 1;
}

int nvmlInit_v2(void) { return 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
  snprintf(version, size, "550.54.15");
  return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
  *device = (void *)(strtol(bus + 5, NULL, 16));
  return *device ? 0 : 6;
}

int nvmlDeviceGetP2PStatus(void *a, void *b, int which, int *status) {
  const char *link = getenv("STAND_IN_LINK");
  (void)a, (void)b;
  *status = which == 2 && link && !strcmp(link, "nvlink") ? 0 : 1;
  return 0;
}

int nvmlDeviceGetTopologyCommonAncestor(void *a, void *b, int *level) {
  (void)a, (void)b;
  *level = setting("STAND_IN_LINK", 50);
  return 0;
}
