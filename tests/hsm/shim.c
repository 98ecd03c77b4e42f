/* A PKCS #11 module in front of another: it writes down the calls, and answers some of them with what
 * a test wants. In a child of fork it wants to be initialised anew, as the standard has it, and the
 * other module, which does not notice, finalised before. What is not named here goes to the other module directly.
 *
 *   SHIM_MODULE      the other module
 *   SHIM_PARAMETERS  what it wants to be initialised with (NSS)
 *   SHIM_LOG         file to which the name of each call is appended
 *   SHIM_ORDERS      file that is read at each call; its lines are
 *                      NAME CODE        answer this call with that return value (hexadecimal)
 *                      NAME CODE once   the same, but only once: the file is removed
 *                      flags BITS       set these flags of the token (hexadecimal)
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long (*function)();

/* CK_FUNCTION_LIST of PKCS #11 2.40: a version, then 68 functions in the order of the standard. */
struct functions {
  unsigned char version[2];
  function call[68];
};

/* CK_C_INITIALIZE_ARGS; `parameters` is pReserved, or of NSS, which then has one more. */
struct arguments {
  void *mutexes[4];
  unsigned long flags;
  void *parameters;
  void *reserved;
};

enum { INITIALIZE = 0, TOKEN_INFO = 6, OPEN = 12, LOGIN = 18, FIND = 26, ENCRYPT_INIT = 29,
       DECRYPT_INIT = 33, DECRYPT = 34, UNWRAP = 61 };

static struct functions *real, mine;
/* The process that initialised: to a child of its, nothing is. */
static int owner;

/* Writes the call down; whether it is to be answered with `*code`. */
static int ordered(const char *name, unsigned long *code) {
  const char *log = getenv("SHIM_LOG"), *orders = getenv("SHIM_ORDERS");
  FILE *file = log ? fopen(log, "a") : NULL;
  char line[256], called[64], once[16];
  int found = 0;
  if (strcmp(name, "Initialize") != 0 && owner != getpid()) {
    *code = 0x190; /* CKR_CRYPTOKI_NOT_INITIALIZED */
    return 1;
  }
  if (file) {
    fprintf(file, "%s\n", name);
    fclose(file);
  }
  file = orders ? fopen(orders, "r") : NULL;
  while (file && !found && fgets(line, sizeof line, file)) {
    int words = sscanf(line, "%63s %lx %15s", called, code, once);
    if (words >= 2 && strcmp(called, name) == 0) {
      found = 1;
      if (words == 3) unlink(orders);
    }
  }
  if (file) fclose(file);
  return found;
}

static unsigned long initialize(struct arguments *given) {
  unsigned long code;
  struct arguments arguments = {{0}, 2, getenv("SHIM_PARAMETERS"), NULL};
  if (ordered("Initialize", &code)) return code;
  code = real->call[INITIALIZE](arguments.parameters ? &arguments : given);
  if (code == 0) owner = getpid();
  return code;
}

static unsigned long token_info(unsigned long slot, char *info) {
  unsigned long code, flags, result;
  if (ordered("GetTokenInfo", &code)) return code;
  result = real->call[TOKEN_INFO](slot, info);
  if (result == 0 && ordered("flags", &flags)) {
    unsigned long now;
    memcpy(&now, info + 96, sizeof now); /* after label, manufacturer, model and serial number */
    now |= flags;
    memcpy(info + 96, &now, sizeof now);
  }
  return result;
}

#define PASS(NAME, INDEX)                                                                         \
  static unsigned long pass_##NAME(unsigned long a, void *b, void *c, void *d, void *e, void *f,  \
                                   void *g, void *h) {                                            \
    unsigned long code;                                                                           \
    if (ordered(#NAME, &code)) return code;                                                       \
    return real->call[INDEX](a, b, c, d, e, f, g, h);                                               \
  }
PASS(OpenSession, OPEN)
PASS(Login, LOGIN)
PASS(FindObjectsInit, FIND)
PASS(EncryptInit, ENCRYPT_INIT)
PASS(DecryptInit, DECRYPT_INIT)
PASS(UnwrapKey, UNWRAP)

/* An error of C_Decrypt ends the operation, so the other module has to end it, too. */
static unsigned long pass_Decrypt(unsigned long session, void *sealed, unsigned long sealed_length,
                                  void *opened, unsigned long *opened_length) {
  unsigned long code, length = 512;
  char ignored[512];
  if (!ordered("Decrypt", &code))
    return real->call[DECRYPT](session, sealed, sealed_length, opened, opened_length);
  real->call[DECRYPT](session, "?", 1UL, ignored, &length);
  return code;
}

unsigned long C_GetFunctionList(void **list) {
  const char *module = getenv("SHIM_MODULE");
  void *library = module ? dlopen(module, RTLD_NOW | RTLD_LOCAL) : NULL;
  function get = library ? (function)dlsym(library, "C_GetFunctionList") : NULL;
  if (!get || get(&real) != 0) return 5;
  mine = *real;
  mine.version[0] = 2;
  mine.version[1] = 40;
  mine.call[3] = (function)C_GetFunctionList;
  mine.call[INITIALIZE] = (function)initialize;
  mine.call[TOKEN_INFO] = (function)token_info;
  mine.call[OPEN] = (function)pass_OpenSession;
  mine.call[LOGIN] = (function)pass_Login;
  mine.call[FIND] = (function)pass_FindObjectsInit;
  mine.call[ENCRYPT_INIT] = (function)pass_EncryptInit;
  mine.call[DECRYPT_INIT] = (function)pass_DecryptInit;
  mine.call[DECRYPT] = (function)pass_Decrypt;
  mine.call[UNWRAP] = (function)pass_UnwrapKey;
  *list = &mine;
  return 0;
}
