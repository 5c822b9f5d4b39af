import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;

/** Makes Java's trust store of a PEM bundle: java TrustStore.java BUNDLE STORE. */
public class TrustStore {
    public static void main(String[] arguments) throws Exception {
        // What tools read this store with; it guards nothing. Java itself reads it without, which this kind of store allows.
        char[] password = "changeit".toCharArray();
        KeyStore store = KeyStore.getInstance("JKS");
        store.load(null, password);
        int count = 0;
        try (InputStream bundle = Files.newInputStream(Path.of(arguments[0]))) {
            for (Certificate certificate : CertificateFactory.getInstance("X.509").generateCertificates(bundle)) {
                store.setCertificateEntry("ca-" + count, certificate);
                count++;
            }
        }
        if (count == 0) {
            throw new IllegalStateException("there is no certificate in " + arguments[0]);
        }
        try (OutputStream out = Files.newOutputStream(Path.of(arguments[1]))) {
            store.store(out, password);
        }
    }
}
